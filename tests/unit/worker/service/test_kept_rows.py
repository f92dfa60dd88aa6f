"""A session that lost a node goes on with those that have its rows: rings of real services, synthetic engines."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from services.worker.service.runner import KEPT_S
from shared.contracts.frame import Frame, FrameKind, Row
from shared.domain.chain import chain_start, class_hash, record_chain, sampler_hash
from shared.domain.errors import InvalidInput, NoCapacity, ProtocolViolation, RowsNotKept
from shared.domain.ids import Epoch, NodeId
from shared.domain.task import SamplerParams
from shared.runtime.clock import SystemClock
from tests.fakes.engine import NUMERICS_CLASS, SyntheticModel
from tests.fakes.identities import COORDINATOR_URL
from tests.fakes.worker_parts import MemoryCluster, Order, wait_until
from tests.unit.worker.service.test_receipts import begin, digests, drafted

NODES = ["a", "b", "c"]
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
async def lost(*, keep: bool = True, clock: Ahead | None = None, n_slots: int = 4) -> AsyncIterator[Lost]:
    async with MemoryCluster(*NODES, "d", clock=clock, n_slots=n_slots).running() as cluster:
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
            num_cold=0,
        )
        yield Lost(cluster, again, before)


def rows_run(cluster: MemoryCluster, node_id: str) -> int:
    return sum(len(slots) for engine in cluster[node_id].loader.engines for slots in engine.steps)


@pytest.mark.parametrize("num_cold", [0, 1, 2, 3])
async def test_only_stages_up_to_the_last_without_the_rows_run_them_again(num_cold: int) -> None:
    async with lost() as after:
        # Where it is cold a stage is on a node that never had it; the others are at home.
        nodes = ["d", *NODES[1:]] if num_cold == 1 else ["a", "d", "c"] if num_cold == 2 else ["a", "b", "d"]
        again = replace(after.again, nodes=nodes if num_cold else NODES, num_cold=num_cold)
        earlier = [rows_run(after.cluster, node_id) for node_id in again.nodes]
        await begin(after.cluster, again)
        assert await after.cluster.tokens(again) == WHOLE[COMMITTED:]
        await after.cluster.seal(again, 4, len(PROMPT) + NUM_TOKENS - 1)
        signed = digests(await after.cluster.receipts(again, 3))
        run = [rows_run(after.cluster, node_id) - rows for node_id, rows in zip(again.nodes, earlier, strict=True)]
        fresh = NUM_TOKENS - COMMITTED
        assert run == [FIRST_ROW + fresh if stage < num_cold else fresh for stage in range(3)]
        for stage in range(3):  # windows end elsewhere in a new epoch; they begin and end with the same chains
            first, last = signed[stage][0], signed[stage][-1]
            assert first[0] == FIRST_ROW == after.before[stage][2][0]
            assert (first[2], first[4]) == (after.before[stage][2][2], after.before[stage][2][4])
            assert (last[1], last[3], last[5]) == (*after.before[stage][3][1:2], after.before[stage][3][3], last[5])
            assert last[5] == after.before[stage][3][5]


async def test_rows_that_were_not_kept_are_not_made_up() -> None:
    async with lost(keep=False) as after:
        with pytest.raises(RowsNotKept, match="80 rows of layers 0-2 are not here"):
            await after.cluster.assign(after.again)
        await after.cluster.assign(replace(after.again, num_cold=3))


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
        again = replace(FIRST, epoch=Epoch(2), generated_ids=tuple(WHOLE[:COMMITTED]), first_window=2, num_cold=0)
        await begin(cluster, again)
        assert await cluster.tokens(again) == WHOLE[COMMITTED:]


async def test_seats_whose_end_was_never_heard_of_leave_their_rows_to_the_next_epoch() -> None:
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, FIRST)
        await cluster.tokens(FIRST)
        again = replace(
            FIRST, epoch=Epoch(2), lane=1, generated_ids=tuple(WHOLE[:COMMITTED]), first_window=2, num_cold=0
        )
        await cluster.assign(again)
        assert all(len(cluster[node_id].seating) == 1 for node_id in NODES)


Say = Callable[[Order], Frame]


def answer(order: Order, position: int, token_id: int | None) -> Frame:
    return Frame(FrameKind.TOKENS, 0, 1, rows=(Row(order.task_id, order.epoch, position, token_id),))


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
