"""The best nodes, order and cut of all there are, for clusters small enough.

A dynamic programme over sets of nodes, as Held and Karp (1962) gave for shortest tours, with the layers done so far as
one more coordinate: the best way to have done [0, end) with these nodes, given the first and the last of them. The
first matters because the last one sends the token's id back to it. A way is dropped when the other nodes could not hold
what is left, or not without becoming slower than a cut that is known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from operator import add, sub
from sys import float_info

from services.partitioner.domain.bounds import least_s, least_token_s, most_within, share_of
from services.partitioner.domain.hops import TOKEN_ID_BYTES
from services.partitioner.domain.strategies.one_stage import INFINITE
from services.partitioner.domain.strategies.pipeline import CLOSE, Cut, Pipelines
from services.partitioner.domain.strategies.walks import walk
from shared.domain.plan import Objective

_MAX_WAYS = 1_300_000
"""Sets of nodes, with the first and the last, by layers: a tenth of a second or two, for most are dropped early."""
_WIDER = (1.1, 1.5)
"""How many times the pace that nothing can beat is tried as a limit."""

Link = tuple[int, int]
"""Sender and receiver."""
ByLast = dict[int, dict[int, float]]
"""Of some nodes, by the last of them: seconds by layer reached."""
Ways = dict[int, ByLast]
"""By the first of them, which is also the last one where it is alone."""


def is_small(num_rooms: int, num_layers: int) -> bool:
    return num_rooms <= 16 and 2**num_rooms * num_rooms**2 * num_layers <= _MAX_WAYS


class EveryChoice:
    def __init__(self, pipelines: Pipelines, objective: Objective) -> None:
        self._pipelines, self._objective = pipelines, objective
        self._limit_s = INFINITE
        """Slower ways are not followed."""
        self._rooms, self._num_layers = pipelines.rooms, pipelines.num_layers
        self._is_latency = objective is Objective.LATENCY
        self._combine: Callable[[float, float], float] = add if self._is_latency else max
        self._hops: dict[Link, list[float]] = {}
        """Seconds by layer. The latency of a link does not count where pace does."""
        self._back: dict[Link, float] = {}
        for sender, receiver in permutations(range(len(self._rooms)), 2):
            hop = pipelines.hops.between(sender, receiver)
            cost = hop.total_s if self._is_latency else hop.transfer_s
            self._hops[sender, receiver] = list(map(cost, pipelines.row_bytes))
            self._back[sender, receiver] = cost(TOKEN_ID_BYTES)
        self._shares = [share_of(room, self._num_layers) for room in self._rooms]
        self._fastest = sorted(range(len(self._rooms)), key=self._shares.__getitem__, reverse=True)
        steps = self._rooms[0].step_sums
        self._left = [steps[-1] - done for done in steps]
        """By layer: FLOPs of those from there on."""
        by_layer = zip(*(room.memory_sums for room in self._rooms), strict=True)
        whole = [room.memory_sums[-1] for room in self._rooms]
        self._needs = [min(map(sub, whole, sums)) for sums in by_layer]
        """By layer: bytes that the layers from there on take at least."""

    def best(self, num_stages: int | None) -> Cut | None:
        """None when nothing fits."""
        for limit_s in self._limits(num_stages):
            self._limit_s = limit_s
            cuts = self._cuts(num_stages)
            found = min(cuts, key=lambda cut: (*cut.value(self._objective), cut.order), default=None)
            if found is not None:
                return found
        return None

    def _limits(self, num_stages: int | None) -> Iterator[float]:
        """What to look within, until something is found; the last one is not exceeded by the best. The tighter a limit,
        the fewer ways there are to follow."""
        order = walk(self._pipelines, self._objective)
        cut = None
        if order is not None and num_stages in {None, len(order)}:
            cut = self._pipelines.best(order, self._objective)
        known_s = float_info.max if cut is None else cut.value(self._objective)[0] * (1 + CLOSE)
        bound_s = least_s(self._rooms, self._num_layers, self._objective)
        if not self._is_latency:
            yield from (bound_s * factor for factor in _WIDER if bound_s * factor < known_s)
        yield known_s

    def _cuts(self, num_stages: int | None) -> Iterator[Cut]:
        """The best of each number of stages, or of the one asked for, within the limit: it falls to the best found."""
        most = num_stages or min(len(self._rooms), self._num_layers)
        ways = self._alone()
        found = dict(ways)
        for count in range(1, most + 1):
            rings = (ring for chosen in ways for ring in self._rings(chosen, ways[chosen]))
            value, chosen, first, last = min(rings, default=(INFINITE, 0, 0, 0))
            if value <= self._limit_s and num_stages in {None, count}:
                self._limit_s = min(self._limit_s, value * (1 + CLOSE))
                order = self._walk_back(found, chosen, first, last)
                cut = self._pipelines.quickest(order, INFINITE if self._is_latency else value * (1 + CLOSE))
                if cut is not None:
                    yield cut
            if count < most:
                ways = self._one_more(ways)
                found |= ways

    def _alone(self) -> dict[int, Ways]:
        """By set of nodes, as bits."""
        alone = {index: self._through(index, {0: 0.0}, self._rest(1 << index)) for index in range(len(self._rooms))}
        return {1 << index: {index: {index: done}} for index, done in alone.items() if done}

    def _one_more(self, ways: Mapping[int, Ways]) -> dict[int, Ways]:
        """With each of the other nodes as the last one."""
        more: dict[int, Ways] = {}
        rests: dict[int, list[float]] = {}
        for before, by_first in ways.items():
            for index in range(len(self._rooms)):
                chosen = before | 1 << index
                if chosen == before:
                    continue
                if chosen not in rests:
                    rests[chosen] = self._rest(chosen)
                for first, by_last in by_first.items():
                    done = self._through(index, self._arrived(by_last, index), rests[chosen])
                    if done:
                        more.setdefault(chosen, {}).setdefault(first, {})[index] = done
        return more

    def _arrived(self, by_last: ByLast, index: int) -> dict[int, float]:
        """By layer, from whichever node is the best to come from."""
        arrived: dict[int, float] = {}
        for last, done in by_last.items():
            hop = self._hops[last, index]
            for layer, seconds in done.items():
                sent = self._combine(seconds, hop[layer])
                if layer < self._num_layers and sent < arrived.get(layer, INFINITE):
                    arrived[layer] = sent
        return arrived

    def _through(self, index: int, arrived: Mapping[int, float], rest: Sequence[float]) -> dict[int, float]:
        """By layer reached, the node being the last one; `rest`: of `_rest`, with it among those chosen."""
        done: dict[int, float] = {}
        if not arrived:
            return done
        first, final = min(arrived), max(arrived)
        combine, limit_s, when = self._combine, self._limit_s, arrived.get
        send = self._pipelines.stage(index, self._objective, first=first).send
        for layer in range(first, self._num_layers):
            seconds, _ = send(when(layer, INFINITE))
            if combine(seconds, rest[layer + 1]) <= limit_s:
                done[layer + 1] = seconds
            elif layer >= final and seconds > limit_s:
                break
        return done

    def _rest(self, chosen: int) -> list[float]:
        """Seconds by layer that the others add at least from there on; infinite where they cannot."""
        others = [index for index in self._fastest if not chosen >> index & 1]
        memory = sum(self._rooms[index].node.memory_bytes for index in others)
        shares = [self._shares[index] for index in others]
        if self._is_latency:
            rest = [least_token_s(left, shares) for left in self._left]
        else:
            most = most_within(self._limit_s, shares)
            rest = [0.0 if left <= most else INFINITE for left in self._left]
        return [rest_s if need <= memory else INFINITE for rest_s, need in zip(rest, self._needs, strict=True)]

    def _rings(self, chosen: int, ways: Ways) -> Iterator[tuple[float, int, int, int]]:
        """Value, nodes, first, last: all layers done, and back to the first node."""
        for first, by_last in ways.items():
            for last, done in by_last.items():
                if self._num_layers in done:
                    whole = done[self._num_layers]
                    value = whole if first == last else self._combine(whole, self._back[last, first])
                    yield value, chosen, first, last

    def _walk_back(self, found: Mapping[int, Ways], chosen: int, first: int, last: int) -> tuple[int, ...]:
        order, layer = [last], self._num_layers
        while last != first:
            chosen ^= 1 << last
            by_last = found[chosen][first]
            arrived = self._arrived(by_last, last)
            told = [arrived.get(start, INFINITE) for start in range(self._num_layers + 1)]
            _, layer = self._pipelines.through(last, told, self._objective)[layer]
            sent = {
                self._combine(done[layer], self._hops[before, last][layer]): before
                for before, done in by_last.items()
                if layer in done
            }
            last = sent[min(sent)]
            order.append(last)
        return tuple(reversed(order))
