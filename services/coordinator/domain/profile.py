"""How fast a node is, as far as it has been measured, and what plans go by.

Two machines that are alike measure differently, and so does one machine twice. So plans do not go by what was measured,
but by a *level* of it: nodes within noise of each other share one, and a node keeps its level until it is off by more.
What all nodes have in common is no difference between them, and changes no level.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.domain.ids import NodeId
from shared.domain.measured import (
    MAX_LINKS,
    MAX_TIMED_STAGES,
    STEADY,
    Drift,
    Measured,
    Pace,
    PeerLink,
    StageTimes,
)

NOISE = math.log(1.3)
"""Figures that differ by less are equal. Of equal workers, each the best of several rounds on a machine with nothing
else to do."""
LINK_NOISE = math.log(1.5)
LEAST_RTT_CHANGE_S = 0.5e-3
MIN_TRIALS = 3
"""Before a node has a level."""
MAX_TRIALS = 5
"""The latest so many are kept."""
MOST_LIFT = 3.0
"""By how much better than its own best trial a node is taken for since another of its machine reached that: host and
cores are what nodes say, and none shall make another look faster than it is by more."""
LEAST_DRIFT, MOST_DRIFT = 0.5, 4.0
"""Beyond this a node's word on its calls, beside its own trials, is not believed."""
LENIENT = 4.0
"""By how much slower than others a node may work than at its trial before that is held against what it told: some
always have to wait for their turn."""
LEAST_CHANGE = math.log(1.05)
"""Of a drift that is worth noting."""
MOST_HANDLING_S = 0.1
"""Beyond this a node's word on what a row takes beside the call is not believed."""
LEAST_HANDLING_CHANGE_S = 0.1e-3
KEPT_DAYS = 30
"""That a profile outlives its node's last day here."""

StageName = tuple[str, int, int]
"""Root of the model, and the layers."""


@dataclass(frozen=True, slots=True)
class NodeProfile:
    node_id: NodeId
    trials: tuple[Pace, ...] = ()
    """The latest last."""
    level: Pace | None = None
    """What plans go by. None: it was not tried often enough yet."""
    is_anew: bool = False
    """Whether none of the trials that its level comes from counts any more."""
    links: tuple[PeerLink, ...] = ()
    stages: tuple[StageTimes, ...] = ()
    """Those measured longest ago first."""
    by_now: Drift = STEADY
    slowness: float = 1.0
    """By how much slower than its trials the coordinator sees it work, beside the others."""
    boot_id: str = ""
    """The run that was tried."""
    cores: int = 0
    """That it had."""
    last_day: int = 0
    """That the node was here, in days since 1970."""

    @property
    def is_empty(self) -> bool:
        return self == NodeProfile(self.node_id)

    @property
    def measured(self) -> Measured | None:
        """As others see the node."""
        return None if self.level is None else Measured(self.level, self.links, self.stages, self.by_now)

    @property
    def stage_names(self) -> frozenset[StageName]:
        return frozenset(map(name_of, self.stages))


def of_run(profile: NodeProfile, boot_id: str, cores: int, *, today: int) -> NodeProfile:
    """As far as it holds for this run of the node, which is here today."""
    if (profile.boot_id, profile.cores) != (boot_id, cores):
        profile = replace(forgotten(profile), links=profile.links, boot_id=boot_id, cores=cores)
    return profile if profile.last_day == today else replace(profile, last_day=today)


def forgotten(profile: NodeProfile) -> NodeProfile:
    """To be measured anew. Until that is done plans go by what they went by before."""
    return NodeProfile(profile.node_id, level=profile.level, is_anew=profile.level is not None)


def without_link(profile: NodeProfile, peer: NodeId) -> NodeProfile:
    return replace(profile, links=tuple(link for link in profile.links if link.peer != peer))


def is_news(before: NodeProfile, profile: NodeProfile) -> bool:
    """Whether the other replicas have to hear of it. Drift moves all the time, so only once it is beyond noise."""
    has_drifted = abs(math.log(profile.by_now.wall / before.by_now.wall)) > NOISE
    return has_drifted or replace(profile, by_now=before.by_now) != before


def name_of(stage: StageTimes) -> StageName:
    return stage.model_root, stage.start, stage.end


def after(
    profile: NodeProfile, pace: Pace | None, stages: Sequence[StageTimes], links: Sequence[PeerLink]
) -> NodeProfile:
    """With what a node has told of itself. Its level is for `levelled` to say."""
    told = {name_of(stage) for stage in stages}
    kept = [stage for stage in profile.stages if name_of(stage) not in told]
    return replace(
        profile,
        trials=profile.trials if pace is None else (*profile.trials, pace)[-MAX_TRIALS:],
        stages=(*kept, *stages)[-MAX_TIMED_STAGES:],
        links=_links(profile.links, links),
    )


def drifted(profile: NodeProfile, told: Drift | None) -> NodeProfile:
    """With what rows take by now, as the node says.

    None, no calls for long: what was slow may be over. A node that lost its layers for that shall not be slow for ever.
    """
    if told is None:
        return profile if profile.by_now == STEADY else replace(profile, by_now=STEADY)
    by_now = Drift(
        wall=_believed(told.wall),
        cpu=_believed(told.cpu),
        batch=None if told.batch is None else _believed(told.batch),
        chunk=None if told.chunk is None else _believed(told.chunk),
        handling_s=min(MOST_HANDLING_S, told.handling_s),
    )
    return replace(profile, by_now=by_now) if _has_moved(profile.by_now, by_now) else profile


def _believed(factor: float) -> float:
    return min(MOST_DRIFT, max(LEAST_DRIFT, factor))


def _has_moved(before: Drift, now: Drift) -> bool:
    pairs = ((before.wall, now.wall), (before.cpu, now.cpu), (before.batch, now.batch), (before.chunk, now.chunk))
    is_other = any(
        old is not new if old is None or new is None else abs(math.log(new / old)) >= LEAST_CHANGE for old, new in pairs
    )
    return is_other or abs(now.handling_s - before.handling_s) >= LEAST_HANDLING_CHANGE_S


def seen(profiles: Iterable[NodeProfile], seconds: Mapping[NodeId, float]) -> tuple[NodeProfile, ...]:
    """With what the coordinator itself saw of their work. `seconds`: per layer-byte and row, the least of several
    windows that a node replayed.

    What was tried and what is replayed are different stages, so nodes are compared by how much longer than at their
    trials they take: who is far beyond the median has told of more than it can do.
    """
    ordered = list(profiles)
    longer = {
        profile.node_id: seconds[profile.node_id] / min(map(_prefill, profile.trials))
        for profile in ordered
        if profile.trials and profile.node_id in seconds
    }
    usual = statistics.median_low(longer.values()) if longer else 1.0  # of two the mean would be half of the slower one
    return tuple(
        _seen(profile, longer[profile.node_id] / usual) if profile.node_id in longer else profile for profile in ordered
    )


def _seen(profile: NodeProfile, slowness: float) -> NodeProfile:
    slowness = slowness if slowness > LENIENT else 1.0
    is_same = abs(math.log(slowness / profile.slowness)) <= NOISE
    return profile if is_same else replace(profile, slowness=slowness)


Figure = Callable[[Pace], float]
Machine = tuple[str, int]
"""A host and a number of its cores: nodes that have both in common are alike, until trials say otherwise."""


def levelled(profiles: Iterable[NodeProfile], machines: Mapping[NodeId, Machine]) -> tuple[NodeProfile, ...]:
    """With the levels that plans are to go by, in order of node ids. `machines`: of each of the nodes."""
    ordered = sorted(profiles, key=lambda profile: profile.node_id)
    decode, prefill = (_levels(ordered, machines, figure) for figure in (_decode, _prefill))
    return tuple(
        replace(profile, level=Pace(decode[profile.node_id], prefill[profile.node_id]), is_anew=False)
        if profile.node_id in decode
        else profile
        for profile in ordered
    )


def quickest(alike: Iterable[NodeProfile]) -> NodeProfile | None:
    """Of nodes that were tried, the one that all others seem slower than if they seem slower than any."""
    return min(
        (profile for profile in alike if profile.trials),
        key=lambda profile: max(map(_decode, profile.trials)),
        default=None,
    )


def wants_trial(profile: NodeProfile, than: NodeProfile | None) -> bool:
    """Whether one more trial is worth its time. `than`: the quickest of the nodes with as many cores on the same host.
    A node that seems slower than that is tried more often before it is believed for long."""
    if len(profile.trials) >= MAX_TRIALS:
        return False
    if len(profile.trials) < MIN_TRIALS:
        return True
    return than is not None and _is_slower(profile, than, _decode)


def assumed_speeds(measured: Sequence[tuple[int, Pace]]) -> Callable[[int], float]:
    """By cores, of a node that was not tried yet, as `NodeCapability.speed`: so many cores like those of the others,
    and no more than the fastest of them. `measured`: cores and levels of these. Alone it is taken for its cores."""
    if not measured:
        return float
    per_core = statistics.median(pace.speed / cores for cores, pace in measured)
    fastest = max(pace.speed for _, pace in measured)
    return lambda cores: min(cores * per_core, fastest)


def _decode(pace: Pace) -> float:
    """A call for one row takes no less than a row among others in a prompt does: what `seen` says of prompts bounds
    what a node can claim of decoding."""
    return max(pace.decode_s_per_byte, pace.prefill_s_per_byte)


def _prefill(pace: Pace) -> float:
    return pace.prefill_s_per_byte


def _levels(
    profiles: Sequence[NodeProfile], machines: Mapping[NodeId, Machine], figure: Figure
) -> Mapping[NodeId, float]:
    """Of the nodes that were tried often enough. On a host of its own a node that has become slower is a slower one.
    What those tried anew have in common is news of them, and not of what all have in common."""
    hosts = Counter(host for host, _ in machines.values())
    tried = [profile for profile in profiles if len(profile.trials) >= MIN_TRIALS]
    alike: defaultdict[Machine, list[NodeProfile]] = defaultdict(list)
    for profile in tried:
        alike[machines[profile.node_id]].append(profile)
    found = {
        profile.node_id: seconds * profile.slowness * (max(1.0, profile.by_now.wall) if hosts[host] == 1 else 1.0)
        for (host, _), profiles_alike in alike.items()
        for profile, seconds in _best(profiles_alike, figure)
    }
    before = {profile.node_id: figure(profile.level) for profile in tried if profile.level is not None}
    off = {node_id: math.log(found[node_id] / level) for node_id, level in before.items()}
    offs = [off[profile.node_id] for profile in tried if profile.level is not None and not profile.is_anew] or [0.0]
    common = min(statistics.median_low(offs), statistics.median_high(offs), key=abs)  # of two, that one has not changed
    levels = {node_id: before[node_id] for node_id in before if abs(off[node_id] - common) <= NOISE}
    known = set(levels.values())
    for node_id in sorted(found.keys() - levels.keys()):
        level = found[node_id] / math.exp(common)
        nearest = min(known, key=lambda other: (abs(math.log(other / level)), other), default=level)
        levels[node_id] = nearest if abs(math.log(nearest / level)) <= NOISE else level
        known.add(levels[node_id])
    return levels


def _best(alike: Sequence[NodeProfile], figure: Figure) -> Iterator[tuple[NodeProfile, float]]:
    """The figure of each of the nodes of one machine: the best that any of those that are equal was found to reach,
    for whatever else ran meanwhile can only have made a trial slower; within `MOST_LIFT`."""
    left = sorted(alike, key=lambda profile: (min(map(figure, profile.trials)), profile.node_id))
    while left:
        fastest, slower = left[0], list[NodeProfile]()
        seconds = min(map(figure, fastest.trials))
        for profile in left:
            if _is_slower(profile, fastest, figure):
                slower.append(profile)
            else:
                yield profile, max(seconds, min(map(figure, profile.trials)) / MOST_LIFT)
        left = slower


def _is_slower(profile: NodeProfile, than: NodeProfile, figure: Figure) -> bool:
    """Whether even its best trial is slower than the other's worst one, by more than noise."""
    best, worst = min(map(figure, profile.trials)), max(map(figure, than.trials))
    return math.log(best / worst) > NOISE


def _links(before: Sequence[PeerLink], told: Sequence[PeerLink]) -> tuple[PeerLink, ...]:
    """A link stays as it was until it is off by more than noise. Those timed longest ago first."""
    links = {link.peer: link for link in before}
    for link in told:
        known = links.pop(link.peer, None)
        links[link.peer] = link if known is None or _differs(known, link) else known
    return tuple(links.values())[-MAX_LINKS:]


def _differs(before: PeerLink, link: PeerLink) -> bool:
    changed_s = abs(link.rtt_s - before.rtt_s)
    is_other_rtt = changed_s > max(LEAST_RTT_CHANGE_S, before.rtt_s * (math.exp(LINK_NOISE) - 1))
    return is_other_rtt or abs(math.log(link.bytes_per_s / before.bytes_per_s)) > LINK_NOISE
