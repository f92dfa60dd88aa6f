"""Seats for tests of the worker."""

from services.worker.domain.seat import Feed, FlowKey, Seat, SeatKey, Tail
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.task import SamplerParams

RING = FlowKey("plan", 0)


def seat_of(
    task: str = "task",
    *,
    epoch: int = 1,
    stage: int = 0,
    slot: int = 0,
    ring: FlowKey = RING,
    feed: Feed | None = None,
    tail: Tail | None = None,
    max_rows: int = 1_000,
    max_waiting: int = 5,
    neighbour: str | None = "other",
) -> Seat:
    """A seat whose neighbours on both sides are `neighbour`."""
    node_id = None if neighbour is None else NodeId(neighbour)
    return Seat(
        key=SeatKey(TaskId(task), ring.lane, stage),
        epoch=Epoch(epoch),
        flow=ring,
        max_rows=max_rows,
        max_waiting=max_waiting,
        threads=1,
        previous=node_id,
        next=node_id,
        slot=slot,
        feed=feed,
        tail=tail,
    )


def feed_of(num_prefix: int, *, running: bool = True) -> Feed:
    feed = Feed(list(range(100, 100 + num_prefix)), num_prefix)
    feed.running = running
    return feed


def tail_of(prompt_ids: tuple[int, ...], *, tokens_left: int = 10, end_ids: tuple[int, ...] = ()) -> Tail:
    return Tail(
        prompt_ids=prompt_ids,
        generated_ids=[],
        num_prefix=len(prompt_ids),
        sampler=SamplerParams(temperature=0.0),
        end_ids=frozenset(end_ids),
        tokens_left=tokens_left,
    )
