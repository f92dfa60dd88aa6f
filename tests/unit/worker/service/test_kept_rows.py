"""A session that lost a node goes on with those that have its rows: rings of real services, synthetic engines."""

import itertools
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from services.worker.service.runner import KEPT_S
from shared.contracts.frame import Frame, FrameKind, Row
from shared.domain.chain import chain_start, class_hash, record_chain, sampler_hash
from shared.domain.errors import InvalidInput, NoCapacity, ProtocolViolation, RowsNotKept
from shared.domain.hidden import HiddenRows
from shared.domain.ids import Epoch, NodeId
from shared.domain.task import SamplerParams
from shared.runtime.clock import SystemClock
from tests.fakes.engine import NUMERICS_CLASS, SyntheticModel
from tests.fakes.identities import COORDINATOR_URL
from tests.fakes.worker_parts import MemoryCluster, Order, wait_until
from tests.unit.worker.service.test_receipts import begin, digests, drafted

NODES = ["a", "b", "c"]
OTHERS = ["d", "e", "f"]
"""Nodes that come in their places."""
PROMPT = tuple((3 * place) % 64 for place in range(70))  # longer than a chunk
NUM_TOKENS = 45
COMMITTED = 11
"""Tokens of windows 0 and 1."""
FIRST_ROW = len(PROMPT) + COMMITTED - 1
SAMPLER = SamplerParams(temperature=0.9, seed=11, repetition_penalty=1.3)
WHOLE = SyntheticModel(num_layers=6).generate(PROMPT, NUM_TOKENS, sampler=SAMPLER)
FIRST = Order("task", PROMPT, NUM_TOKENS, NODES, sampler=SAMPLER)


class Ahead(SystemClock):
    """Of the right time by as much as a test likes."""

    ahead_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.ahead_s


@dataclass(frozen=True)
class Lost:
    """A ring of three that has lost a node after window 1 was committed, and what it had signed by then."""

    cluster: MemoryCluster
    again: Order
    """The same seats, which nobody has taken yet, in the next epoch."""
    before: list[list[tuple[int | str, ...]]]
    """Per stage and window."""


@asynccontextmanager
async def lost(*, keep: bool = True, clock: Ahead | None = None, **settings: int) -> AsyncIterator[Lost]:
    async with MemoryCluster(*NODES, *OTHERS, clock=clock, **settings).running() as cluster:
        await begin(cluster, FIRST)
        records = await drafted(cluster, FIRST)
        await cluster.seal(FIRST, 3, len(PROMPT) + NUM_TOKENS - 1)
        before = digests(await cluster.receipts(FIRST, 4))
        await cluster.stop(FIRST, keep=keep)
        hashes = {"numerics_hash": class_hash(NUMERICS_CLASS), "sampler": sampler_hash(SAMPLER)}
        sink = record_chain(
            chain_start("root of synthetic", 6, **hashes), row=len(PROMPT) - 1, records=records[:COMMITTED]
        )
        again = replace(
            FIRST,
            epoch=Epoch(2),
            generated_ids=tuple(WHOLE[:COMMITTED]),
            first_window=2,
            sink_start=sink.at(sink.row).hex(),
            cold=(),
        )
        yield Lost(cluster, again, before)


def rows_run(cluster: MemoryCluster, node_id: str) -> int:
    return sum(len(slots) for engine in cluster[node_id].loader.engines for slots in engine.steps)


def moved(order: Order, cold: Collection[int]) -> Order:
    """The order with other nodes at these stages, which do not have the rows before the epoch."""
    nodes = [OTHERS[stage] if stage in cold else node for stage, node in enumerate(order.nodes)]
    return replace(order, nodes=nodes, cold=cold)


PATTERNS = [cold for count in range(4) for cold in itertools.combinations(range(3), count)]


@pytest.mark.parametrize("cold", PATTERNS, ids=str)
async def test_only_stages_without_the_rows_run_them_again(cold: Collection[int]) -> None:
    async with lost() as after:
        again = moved(after.again, cold)
        earlier = [rows_run(after.cluster, node_id) for node_id in again.nodes]
        await begin(after.cluster, again)
        assert await after.cluster.tokens(again) == WHOLE[COMMITTED:]
        await after.cluster.seal(again, 4, len(PROMPT) + NUM_TOKENS - 1)
        signed = digests(await after.cluster.receipts(again, 3))
        run = [rows_run(after.cluster, node_id) - rows for node_id, rows in zip(again.nodes, earlier, strict=True)]
        fresh = NUM_TOKENS - COMMITTED
        assert run == [FIRST_ROW + fresh if stage in cold else fresh for stage in range(3)]
        for stage in range(3):  # windows end elsewhere in a new epoch; they begin and end with the same chains
            first, last = signed[stage][0], signed[stage][-1]
            assert first[0] == FIRST_ROW == after.before[stage][2][0]
            assert (first[2], first[4]) == (after.before[stage][2][2], after.before[stage][2][4])
            assert (last[1], last[3], last[5]) == (*after.before[stage][3][1:2], after.before[stage][3][3], last[5])
            assert last[5] == after.before[stage][3][5]


@pytest.mark.parametrize("cold", PATTERNS, ids=str)
async def test_a_lane_that_replays_gets_the_rows_it_lacks_in_the_same_way(cold: Collection[int]) -> None:
    async with lost() as after:
        again = moved(replace(after.again, lane=1, decodes=False), cold)
        await begin(after.cluster, again)
        ids = WHOLE[COMMITTED - 1 : NUM_TOKENS - 1]
        await after.cluster.release(again, 2, FIRST_ROW, ids)
        await after.cluster.seal(again, 4, FIRST_ROW + len(ids))
        signed = digests(await after.cluster.receipts(again, 3))
        for stage in range(3):
            assert signed[stage][0][2::2] == after.before[stage][2][2::2]
            assert signed[stage][-1][3::2] == after.before[stage][3][3::2]


@pytest.mark.parametrize("first_cold", PATTERNS[1:], ids=str)
async def test_what_was_sent_once_more_can_be_sent_once_more(first_cold: Collection[int]) -> None:
    """Stages of the epoch after that have rows of two epochs, computed or only gone by there."""
    async with lost() as after:
        second = moved(after.again, first_cold)
        await begin(after.cluster, second)
        assert await after.cluster.tokens(second) == WHOLE[COMMITTED:]
        await after.cluster.receipts(second, 2)
        await after.cluster.stop(second, keep=True)
        committed = COMMITTED + 10  # windows 0, 1 and 2
        third = replace(
            second,
            epoch=Epoch(3),
            generated_ids=tuple(WHOLE[:committed]),
            first_window=3,
            nodes=[second.nodes[0], "a" if second.nodes[1] != "a" else "d", second.nodes[2]],
            cold=(1,),
        )
        await begin(after.cluster, third)
        assert await after.cluster.tokens(third) == WHOLE[committed:]


async def test_a_stage_whose_rows_found_no_room_does_not_promise_to_send_them_again() -> None:
    async with lost(row_log_bytes=1) as after:
        with pytest.raises(RowsNotKept):
            await after.cluster.assign(moved(after.again, (1,)))
        await after.cluster.assign(replace(moved(after.again, (0,)), epoch=Epoch(3)))


async def test_rows_that_wait_for_no_epoch_are_let_go_of_in_time() -> None:
    clock = Ahead()
    async with lost(clock=clock) as after:
        first = after.cluster["a"]
        for ahead_s, is_held in ((KEPT_S / 2, True), (KEPT_S, False)):
            clock.ahead_s = ahead_s
            for runner in first.stages.runners:
                runner.forget_expired()
            assert (first.row_logs.held_bytes > 0) is is_held


async def test_no_log_outlives_its_session() -> None:
    async with lost() as after:
        logs = [after.cluster[node].row_logs for node in NODES]
        assert [log.held_bytes > 0 for log in logs] == [True, True, False]
        await after.cluster.stop(FIRST)
        assert [log.held_bytes for log in logs] == [0, 0, 0]


async def test_rows_that_were_not_kept_are_not_made_up() -> None:
    async with lost(keep=False) as after:
        with pytest.raises(RowsNotKept, match="80 rows of layers 0-2 are not here"):
            await after.cluster.assign(after.again)
        await after.cluster.assign(replace(after.again, cold=None))


async def test_rows_are_kept_at_the_ends_of_signed_windows_only() -> None:
    async with lost() as after:
        elsewhere = replace(after.again, generated_ids=tuple(WHOLE[: COMMITTED + 1]))
        with pytest.raises(RowsNotKept):
            await after.cluster.assign(elsewhere)


@pytest.mark.parametrize("change", [{"start_row": 3}, {"next_row": 3}], ids=["start_row", "next_row"])
async def test_an_epoch_goes_on_where_its_order_says(change: dict[str, int]) -> None:
    async with lost() as after:
        assignment = after.cluster.assignment(after.again, 0).model_copy(update=change)
        with pytest.raises(InvalidInput, match="0 or 80"):
            await after.cluster["a"].sessions.assign(assignment, COORDINATOR_URL)


async def test_a_new_session_gets_the_slot_of_rows_that_are_kept() -> None:
    async with lost(n_slots=1) as after:
        other = Order("other", PROMPT[:5], 8, NODES)
        assert await after.cluster.run(other) == SyntheticModel(num_layers=6).generate(PROMPT[:5], 8)
        with pytest.raises(RowsNotKept):
            await after.cluster.assign(after.again)


async def test_a_slot_in_use_is_not_given_away() -> None:
    async with lost(n_slots=1) as after:
        await after.cluster.assign(after.again)
        with pytest.raises(NoCapacity):
            await after.cluster.assign(Order("other", PROMPT[:5], 8, NODES))


async def test_rows_are_not_kept_for_ever() -> None:
    clock = Ahead()
    async with lost(clock=clock) as after:
        clock.ahead_s = KEPT_S
        await after.cluster.assign(Order("other", PROMPT[:5], 8, NODES))
        with pytest.raises(RowsNotKept):
            await after.cluster.assign(after.again)


async def test_rows_of_a_session_that_is_over_are_forgotten() -> None:
    async with lost() as after:
        await after.cluster.stop(FIRST)
        with pytest.raises(RowsNotKept):
            await after.cluster.assign(after.again)


async def test_a_broken_link_leaves_the_rows_where_they_are() -> None:
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, FIRST)
        await cluster.tokens(FIRST)
        cluster["a"].carrier.cut(NodeId("b"))
        await wait_until(lambda: len(cluster["a"].seating) + len(cluster["b"].seating) == 0)
        again = replace(FIRST, epoch=Epoch(2), generated_ids=tuple(WHOLE[:COMMITTED]), first_window=2, cold=())
        await begin(cluster, again)
        assert await cluster.tokens(again) == WHOLE[COMMITTED:]


async def test_seats_whose_end_was_never_heard_of_leave_their_rows_to_the_next_epoch() -> None:
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, FIRST)
        await cluster.tokens(FIRST)
        again = replace(FIRST, epoch=Epoch(2), lane=1, generated_ids=tuple(WHOLE[:COMMITTED]), first_window=2, cold=())
        await cluster.assign(again)
        assert all(len(cluster[node_id].seating) == 1 for node_id in NODES)


Say = Callable[[Order], Frame]


def answer(order: Order, position: int, token_id: int | None) -> Frame:
    return Frame(FrameKind.TOKENS, 0, 1, rows=(Row(order.task_id, order.epoch, position, token_id),))


def recall(order: Order, position: int, rows: int = 1) -> Frame:
    return Frame(FrameKind.RECALL, 0, 1, rows=(Row(order.task_id, order.epoch, position),) * rows)


@pytest.mark.parametrize(
    ("cold", "frames"),
    [
        ((2,), lambda order: [recall(order, 5)]),
        ((2,), lambda order: [recall(order, 0), recall(order, FIRST_ROW)]),
        ((2,), lambda order: [recall(order, 0, rows=2)]),
        ((2,), lambda order: [replace(recall(order, 0), hidden=HiddenRows(bytes(32), 8))]),
        ((0,), lambda order: [recall(order, 0)]),
        ((1, 2), lambda order: [recall(order, 0)]),
    ],
    ids=["a gap", "beyond the epoch's first row", "two places", "rows beside", "nobody lacks them", "it lacks them"],
)
async def test_rows_are_recalled_in_order_and_only_where_they_are_wanted(
    cold: Collection[int], frames: Callable[[Order], list[Frame]]
) -> None:
    async with lost() as after:
        again = moved(after.again, cold)
        await after.cluster.assign(again)
        with pytest.raises(ProtocolViolation):
            after.cluster[again.nodes[1]].ring.take(NodeId(again.nodes[0]), frames(again))


async def test_rows_that_are_recalled_twice_go_by_once() -> None:
    async with lost() as after:
        again = moved(after.again, (2,))
        await after.cluster.assign(again)
        ring = after.cluster["b"].ring
        ring.take(NodeId("a"), [recall(again, 0), recall(again, 0)])
        assert ring.dropped["repeated"] == 1


@pytest.mark.parametrize(
    "say",
    [lambda order: answer(order, FIRST_ROW, 5), lambda order: answer(order, FIRST_ROW + 1, None)],
    ids=["a token", "rows that the stage has not"],
)
async def test_nothing_else_is_handed_on_in_place_of_the_last_stage(say: Say) -> None:
    async with lost() as after:
        await after.cluster.assign(after.again)
        with pytest.raises(ProtocolViolation, match="not at stage 0"):
            after.cluster["b"].ring.take(NodeId("a"), [say(after.again)])
