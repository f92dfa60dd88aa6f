"""Seats for tests of the worker."""

from services.worker.domain.seat import Feed, FlowKey, Seat, SeatKey, Tail
from services.worker.domain.window_keeper import WindowKeeper
from shared.contracts.messages import StageRef
from shared.domain.ids import Epoch, ModelId, NodeId, TaskId
from shared.domain.plan import LayerRange
from shared.domain.task import SamplerParams
from tests.fakes.orders import order_of

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
        replay_threads=1,
        previous=node_id,
        next=node_id,
        slot=slot,
        report_to="http://coordinator",
        windows=keeper_of(task, epoch=epoch, stage=stage, lane=ring.lane),
        feed=feed,
        tail=tail,
    )


def keeper_of(
    task: str = "task",
    *,
    epoch: int = 1,
    stage: int = 0,
    lane: int = 0,
    layers: LayerRange | None = None,
    prompt_ids: tuple[int, ...] = (1, 2, 3),
    generated_ids: tuple[int, ...] = (),
    first_window: int | None = None,
    sink_start: str = "ab" * 32,
    keeps_records: bool = False,
) -> WindowKeeper:
    """Of a model of six layers, of which a stage has two if nothing else is said."""
    layers = layers or LayerRange(2 * stage, 2 * stage + 2)
    order = order_of(
        node_id=NodeId("own"),
        task_id=TaskId(task),
        epoch=Epoch(epoch),
        lane=lane,
        stage=stage,
        ref=StageRef(model_id=ModelId("model"), model_root="root", layers=layers, num_layers=6),
        sampler=SamplerParams(temperature=0.0),
        numerics_class="synthetic",
        prompt_ids=prompt_ids,
        generated_ids=generated_ids,
        first_window=first_window,
        sink_start=sink_start,
    )
    return WindowKeeper(order, order_digest="00" * 32, keeps_records=keeps_records)


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
