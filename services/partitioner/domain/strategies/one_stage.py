"""One stage more on a way through the layers: for each layer it may end at, the best one for it to start at.

A row that is at layer `start` after `arrived` seconds has left the stage [start, end) after the sum of that and the
stage's own time; or, as a pace, it is the larger of the two. From one end to the next the possible starts change by one
more at the back and perhaps some fewer at the front, for the room holds only so many layers. So the starts that may yet
be the best of some end wait in a queue, and all ends together take one pass over the layers: the well-known minimum of
a sliding window.
"""

from collections import deque
from collections.abc import Generator, Sequence

from services.partitioner.domain.placement import SeatRoom
from shared.domain.plan import Objective

INFINITE = float("inf")

Way = tuple[float, int]
"""Seconds, and the layer where the stage starts."""
Stage = Generator[Way, float, None]
"""Send when the row is at each layer in turn (infinite: never), and get the best way to the layer after it."""
NO_WAY: Way = (INFINITE, -1)


def first_starts(room: SeatRoom, limit_s: float = INFINITE) -> list[int]:
    """For each end from 0 on: the first start from which the room holds the stage and takes at most `limit_s`; the end
    itself where there is none."""
    memory, steps = room.memory_sums, room.step_sums  # `holds` and `step_s` written out: most of a search is here
    memory_bytes, speed = room.node.memory_bytes, room.speed
    starts, start = [0], 0
    for end in range(1, len(steps)):
        while start < end and (
            memory[end] - memory[start] > memory_bytes or (steps[end] - steps[start]) / speed > limit_s
        ):
            start += 1
        starts.append(start)
    return starts


def one_stage(done_s: Sequence[float], starts: Sequence[int], objective: Objective, first: int = 0) -> Stage:
    """`done_s`: seconds of the layers before each layer, in this room; `starts`: the first ones, by end; `first`: the
    layer of which is told first."""
    best = _sums(done_s, starts, first) if objective is Objective.LATENCY else _paces(done_s, starts, first)
    next(best)
    return best


def _sums(done_s: Sequence[float], starts: Sequence[int], first: int) -> Stage:
    waiting: deque[Way] = deque()  # the first is the best; later ones have larger differences
    way = NO_WAY
    for end in range(first + 1, len(starts)):
        arrived_s = yield way
        if arrived_s < INFINITE:
            difference = arrived_s - done_s[end - 1]
            while waiting and waiting[-1][0] > difference:
                waiting.pop()
            waiting.append((difference, end - 1))
        while waiting and waiting[0][1] < starts[end]:
            waiting.popleft()
        way = (waiting[0][0] + done_s[end], waiting[0][1]) if waiting else NO_WAY
    yield way


def _paces(done_s: Sequence[float], starts: Sequence[int], first: int) -> Stage:
    waiting: deque[Way] = deque()  # later ones have larger arrivals and shorter stages
    way = NO_WAY
    for end in range(first + 1, len(starts)):
        arrived_s = yield way
        if arrived_s < INFINITE:
            while waiting and waiting[-1][0] >= arrived_s:
                waiting.pop()
            waiting.append((arrived_s, end - 1))
        while waiting and waiting[0][1] < starts[end]:
            waiting.popleft()
        way = _pace(waiting[0], done_s, end) if waiting else NO_WAY
        # One that is no worse than the one before it stays so: the other's stage, which decides there, only grows.
        while len(waiting) > 1 and (other := _pace(waiting[1], done_s, end))[0] <= way[0]:
            waiting.popleft()
            way = other
    yield way


def _pace(arrival: Way, done_s: Sequence[float], end: int) -> Way:
    arrived_s, start = arrival
    step_s = done_s[end] - done_s[start]
    return max(arrived_s, step_s), start
