"""Lanes of real services around synthetic engines: what their seats sign."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from services.worker.domain.batching import PrefillCall
from services.worker.domain.identity import Identity
from services.worker.ports import Report
from services.worker.service.receipts import KeySigner, ReceiptDesk
from services.worker.service.runner import StepResult
from shared.contracts.messages import DraftTokens, ReceiptPosted
from shared.domain.chain import RowChain, chain_start, class_hash, id_bytes, record_chain, sampler_hash
from shared.domain.errors import InvalidInput, StaleEpoch, TaskNotFound, UnsupportedModel
from shared.domain.ids import Epoch
from shared.domain.numerics import Profile
from shared.domain.receipt import SignedReceipt
from shared.domain.signing import SigningKey, digest_of
from shared.domain.task import SamplerParams, TokenRecord
from tests.fakes.engine import NUMERICS_CLASS, SyntheticModel
from tests.fakes.seats import seat_of
from tests.fakes.worker_parts import MemoryCluster, Order, wait_until

MODEL = SyntheticModel(num_layers=6)
NODES = ["a", "b", "c"]
ROTATED = ["c", "a", "b"]
SAMPLER = SamplerParams(
    temperature=0.9, seed=11, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, logprobs=2
)
PROMPT = tuple((3 * place) % 64 for place in range(70))  # longer than a chunk
NUM_TOKENS = 45


def digests(receipts: list[list[SignedReceipt]]) -> list[list[tuple[int | str, ...]]]:
    """Per stage and window, what must be equal in every lane."""
    names = ("row_start", "row_end", "in_start", "in_digest", "out_start", "out_digest")
    return [[tuple(getattr(one.receipt, name) for name in names) for one in seat] for seat in receipts]


async def drafted(cluster: MemoryCluster, order: Order) -> list[TokenRecord]:
    await cluster.tokens(order)
    return [
        record
        for report in cluster.coordinator.told
        if isinstance(report, DraftTokens)
        for draft in report.drafts
        if (draft.task_id, draft.epoch, draft.lane) == (order.task_id, order.epoch, 0)
        for record in draft.records
    ]


async def begin(cluster: MemoryCluster, order: Order) -> None:
    await cluster.assign(order)
    await cluster.start(order)


async def replay(cluster: MemoryCluster, order: Order, ids: list[int], windows: list[tuple[int, int, int]]) -> None:
    """Release (window, row_start, row_end) one after the other, each once the one before is signed."""
    await begin(cluster, order)
    for count, (window, row_start, row_end) in enumerate(windows, 1):
        await cluster.release(order, window, row_start, ids[row_start:row_end])
        if window == windows[-1][0]:
            await cluster.seal(order, window, row_end)
        await cluster.receipts(order, count)


@pytest.mark.parametrize("sampler", [SamplerParams(temperature=0.0), SAMPLER], ids=["greedy", "sampled"])
@pytest.mark.parametrize("num_stages", [1, 3])
async def test_an_audit_lane_signs_what_lane_0_signed(sampler: SamplerParams, num_stages: int) -> None:
    lane_0 = Order("task", PROMPT, NUM_TOKENS, NODES[:num_stages], sampler=sampler)
    lane_1 = replace(lane_0, nodes=ROTATED[:num_stages], lane=1, decodes=False)
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, lane_0)
        records = await drafted(cluster, lane_0)
        ids = [*PROMPT, *(record.token_id for record in records)]
        assert ids[70:] == MODEL.generate(PROMPT, NUM_TOKENS, sampler=sampler)
        end = len(ids) - 1
        await cluster.seal(lane_0, 3, end)
        expected = await cluster.receipts(lane_0, 4)
        await replay(cluster, lane_1, ids, [(0, 0, 70), (1, 70, 80), (2, 80, 100), (3, 100, end)])
        found = await cluster.receipts(lane_1, 4)
        assert digests(found) == digests(expected)
        posted = cluster.posted(lane_1)[-1]
        assert [record for one in posted for record in one.records] == records
        assert not any(one.records for seat in cluster.posted(lane_0) for one in seat)
        # Nothing is left to be answered: the lane could go on.
        feed = cluster[lane_1.nodes[0]].seating.of_lane(lane_1.task_id, 1, lane_1.epoch)[0].seat.feed
        assert feed is not None
        await wait_until(lambda: feed.acknowledged == end)


async def test_receipts_cover_the_ids_and_the_records_and_follow_from_the_order() -> None:
    order = Order("task", PROMPT, 15, NODES, sampler=SAMPLER)
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, order)
        records = await drafted(cluster, order)
        await cluster.seal(order, 2, 84)
        first, second, third = await cluster.receipts(order, 3)
        orders = [digest_of(cluster.assignment(order, stage).order.signed()) for stage in range(3)]
    numerics = class_hash(NUMERICS_CLASS)
    root = "root of synthetic"
    source = RowChain(chain_start(root, 0, numerics_hash=numerics), row=0)
    source.extend(map(id_bytes, (*PROMPT, *(record.token_id for record in records))))
    top = chain_start(root, 6, numerics_hash=numerics, sampler=sampler_hash(SAMPLER))
    sink = record_chain(top, row=69, records=records)
    assert [one.receipt.in_digest for one in first] == [source.at(row).hex() for row in (70, 80, 84)]
    assert [one.receipt.out_digest for one in third] == [sink.at(row).hex() for row in (70, 80, 84)]
    for below, above in ((first, second), (second, third)):
        assert [one.receipt.out_digest for one in below] == [one.receipt.in_digest for one in above]
    for seat, order_digest in zip((first, second, third), orders, strict=True):
        assert [one.receipt.prev_receipt for one in seat] == [order_digest, *(one.digest for one in seat[:-1])]


async def test_a_later_epoch_signs_the_same_digests_for_the_same_rows() -> None:
    order = Order("task", PROMPT, NUM_TOKENS, NODES, sampler=SAMPLER)
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, order)
        records = await drafted(cluster, order)
        before = await cluster.receipts(order, 3)
        done = tuple(record.token_id for record in records[:11])  # windows 0 and 1
        again = replace(
            order,
            epoch=Epoch(2),
            generated_ids=done,
            first_window=2,
            sink_start=before[2][1].receipt.out_digest,
            nodes=ROTATED,
        )
        await begin(cluster, again)
        assert await drafted(cluster, again) == records[11:]
        after = await cluster.receipts(again, 2)
        lane_1 = replace(again, lane=1, decodes=False, nodes=["b", "c", "a"])
        ids = [*PROMPT, *(record.token_id for record in records)]
        await begin(cluster, lane_1)
        await cluster.release(lane_1, 3, 90, ids[90:110])  # early: waits for the window before
        await cluster.release(lane_1, 2, 80, ids[80:90])
        assert digests(await cluster.receipts(lane_1, 2)) == digests(after)
        assert [one.records for one in cluster.posted(lane_1)[2]] == [tuple(records[11:21]), tuple(records[21:41])]
    for old, new in zip(before, after, strict=True):
        # Windows are small again, [80, 90) and [90, 110), where the first epoch had [80, 100).
        assert (new[0].receipt.in_start, new[0].receipt.out_start) == (
            old[2].receipt.in_start,
            old[2].receipt.out_start,
        )


async def test_the_windows_of_two_epochs_meet_at_the_same_digest() -> None:
    """Rows [0, 100) end a window in the first epoch; the second, from row 90 on, ends one there as well."""
    order = Order("task", PROMPT, NUM_TOKENS, NODES)
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, order)
        records = await drafted(cluster, order)
        before = await cluster.receipts(order, 3)
        top = chain_start(
            "root of synthetic", 6, numerics_hash=class_hash(NUMERICS_CLASS), sampler=sampler_hash(order.sampler)
        )
        sink = record_chain(top, row=69, records=records).at(90).hex()
        done = tuple(record.token_id for record in records[:21])
        again = replace(order, epoch=Epoch(2), generated_ids=done, first_window=3, sink_start=sink)
        await begin(cluster, again)
        after = await cluster.receipts(again, 1)
    assert [seat[0].receipt.row_end for seat in after] == [100] * 3
    assert [seat[0].receipt.out_digest for seat in after] == [seat[2].receipt.out_digest for seat in before]
    assert [seat[0].receipt.in_digest for seat in after] == [seat[2].receipt.in_digest for seat in before]


async def test_lane_0_runs_so_far_ahead_of_the_commits_and_no_further() -> None:
    order = Order("task", PROMPT, NUM_TOKENS, NODES, max_windows_ahead=2)
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, order)
        await cluster.receipts(order, 2)  # windows 0 and 1
        (first,) = cluster["a"].seating.of_lane(order.task_id, 0, order.epoch)
        feed = first.seat.feed
        assert feed is not None
        await wait_until(lambda: feed.acknowledged == 80)
        for _ in range(20):
            await asyncio.sleep(0)
        assert feed.started == 80
        await cluster.committed(order, 0)
        await cluster.receipts(order, 3)
        await wait_until(lambda: feed.acknowledged == 100)
        assert feed.started == 100
        await cluster.committed(order, 0)  # again: nothing changes
        assert feed.started == 100
        await cluster.committed(order, 2)
        assert await cluster.tokens(order) == MODEL.generate(PROMPT, NUM_TOKENS)


async def test_lanes_that_decode_beside_lane_0_post_their_records_with_the_receipts() -> None:
    lane_0 = Order("task", PROMPT, 21, NODES, sampler=SAMPLER)
    lane_1 = replace(lane_0, lane=1, nodes=ROTATED)
    async with MemoryCluster(*NODES).running() as cluster:
        await asyncio.gather(begin(cluster, lane_0), begin(cluster, lane_1))
        for lane in (lane_0, lane_1):
            await cluster.seal(lane, 2, 90)  # before the rows are there
        expected, found = await asyncio.gather(cluster.receipts(lane_0, 3), cluster.receipts(lane_1, 3))
        assert digests(found) == digests(expected)
        records = await drafted(cluster, lane_0)
        assert [record for one in cluster.posted(lane_1)[2] for record in one.records] == records
        assert [record.token_id for record in records] == MODEL.generate(PROMPT, 21, sampler=SAMPLER)


async def test_an_audit_lane_does_not_go_on_by_itself() -> None:
    lane_1 = Order("task", PROMPT, 10, NODES, lane=1, decodes=False)
    async with MemoryCluster(*NODES).running() as cluster:
        await begin(cluster, lane_1)
        await cluster.release(lane_1, 0, 0, PROMPT)
        await cluster.release(lane_1, 0, 0, PROMPT)  # delivered twice
        await cluster.receipts(lane_1, 1)
        (first,) = cluster["a"].seating.of_lane(lane_1.task_id, 1, lane_1.epoch)
        feed = first.seat.feed
        assert feed is not None
        await wait_until(lambda: feed.acknowledged == 70)
        assert (feed.started, len(feed.ids)) == (70, 70)
        assert not any(isinstance(report, DraftTokens) for report in cluster.coordinator.told)


async def test_releases_that_make_no_sense_are_refused() -> None:
    lane_0 = Order("task", PROMPT, 10, NODES, max_rows=100)
    lane_1 = replace(lane_0, lane=1, decodes=False)
    async with MemoryCluster(*NODES).running() as cluster:
        await cluster.assign(lane_0)
        await cluster.assign(lane_1)
        with pytest.raises(InvalidInput, match="needs no release"):
            await cluster.release(lane_0, 0, 0, PROMPT)
        with pytest.raises(InvalidInput, match="vocabulary"):
            await cluster.release(lane_1, 0, 0, (1, 64))
        with pytest.raises(InvalidInput, match="session of 100"):
            await cluster.release(lane_1, 0, 50, PROMPT)
        with pytest.raises(TaskNotFound):
            await cluster.release(replace(lane_1, lane=2), 0, 0, PROMPT)
        with pytest.raises(TaskNotFound):
            await cluster.seal(replace(lane_1, lane=2), 0, 70)
        with pytest.raises(InvalidInput, match="cannot end"):
            await cluster.seal(lane_1, 1, 70)
        await cluster.committed(replace(lane_1, lane=2), 0)


def test_nothing_is_signed_for_a_seat_that_was_freed() -> None:
    told: list[Report] = []
    key = SigningKey.generate()
    desk = ReceiptDesk(
        signer=KeySigner(Identity(key.node_id, key)),
        report=lambda report, _: told.append(report),
        send_drafts=lambda: None,
    )
    stays, goes = seat_of("stays", stage=1), seat_of("goes", stage=1)
    rows = np.ones((3, 8), np.float32)
    goes.live = False
    for seat in (goes, stays):
        desk.note(PrefillCall((seat,), 0, 3, rows, final=True), StepResult(rows, (), 0.0, 0.0))
    assert [report.task_id for report in told if isinstance(report, ReceiptPosted)] == ["stays"]


async def test_a_seat_that_was_freed_is_not_taken_again_in_the_same_epoch() -> None:
    order = Order("task", PROMPT, 10, NODES)
    async with MemoryCluster(*NODES).running() as cluster:
        await cluster.assign(order)
        await cluster.stop(order)
        with pytest.raises(StaleEpoch, match="held and lost"):
            await cluster.assign(order)
        await cluster.assign(replace(order, epoch=Epoch(2)))


async def test_a_stage_that_promises_nothing_takes_no_seat_in_a_lane_that_is_compared() -> None:
    lane_0 = Order("task", PROMPT, 10, NODES)
    async with MemoryCluster(*NODES).running() as cluster:
        await cluster.assign(lane_0)
        (seated,) = cluster["a"].seating.of_lane(lane_0.task_id, 0, lane_0.epoch)
        seated.runner.loaded = replace(seated.runner.loaded, profile=Profile.TOLERANT)
        with pytest.raises(UnsupportedModel, match="tolerant here"):
            await cluster.assign(replace(lane_0, lane=1, decodes=False))
