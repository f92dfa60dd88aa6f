"""What must hold when a history is over: of each task, and of each host."""

from collections.abc import Iterator, Sequence

from services.api.domain.receipt_bundle import bundle_of
from services.coordinator.domain.faults import GENERATION_FAILED
from services.worker.service.state import WorkerState
from shared.contracts.coordinator import CoordinatorState, NodeList
from shared.domain.bundle import check_bundle
from shared.domain.errors import ButterflyError, DeadlineExceeded
from shared.domain.session import NodeState
from shared.domain.task import Verification
from shared.domain.task_state import TERMINAL, TRANSITIONS, TaskState
from shared.registry.base import StreamEntry, TaskRecord, TaskRegistry
from shared.registry.receipts import ReceiptStore
from shared.resilience.http_client import PeerClient
from tests.simulation.seeded.story import Errand
from tests.synthetic.load import right_ids

FAULTS_OF_A_LOST_ANSWER = 5
"""As many must have struck before an answer may be given up."""


async def task_faults(
    errand: Errand, registry: TaskRegistry, receipts: ReceiptStore, *, num_faults: int
) -> tuple[str, ...]:
    """`num_faults`: that took effect in the whole history."""
    task_id = errand.task.task_id
    record = await registry.record(task_id)
    streams = await registry.read_streams({task_id: "0"}, block_s=0)
    ids = [token.token_id for token in await registry.tokens(task_id)]
    found = [*_of_end(errand, record, num_faults), *_of_stream(streams[task_id]), *_of_tokens(errand, record, ids)]
    told = [token.token_id for entry in streams[task_id] if entry.kind == "commit" for token in _records(entry)]
    if told[: len(ids)] != ids:
        found.append(f"its stream told {told}, committed is {ids}")
    if errand.task.verification is not Verification.NONE and ids:
        found += await _of_proof(record, registry, receipts)
    return tuple(f"{task_id}: {what}" for what in found)


def _records(entry: StreamEntry) -> Sequence:  # type: ignore[type-arg]  # of tokens, as the entry's kind says
    records = entry.data["records"]
    assert isinstance(records, tuple)
    return records


def _of_end(errand: Errand, record: TaskRecord, num_faults: int) -> Iterator[str]:
    match record.state:
        case TaskState.COMPLETED:
            return
        case TaskState.CANCELLED if errand.cancel_after_s is not None:
            return
        case TaskState.FAILED if record.error_code == DeadlineExceeded.code and not errand.has_long:
            return
        case TaskState.FAILED if record.error_code == GENERATION_FAILED and num_faults >= FAULTS_OF_A_LOST_ANSWER:
            return
    yield f"ended as {record.state} ({record.error_code}: {record.error}), which nothing explains"


def _of_stream(entries: Sequence[StreamEntry]) -> Iterator[str]:
    num_told, state, fences = 0, None, (0, 0)
    for entry in entries:
        match entry.kind:
            case "commit":
                if entry.data["first_index"] != num_told:
                    yield f"its stream tells token {entry.data['first_index']} after {num_told}"
                num_told += len(_records(entry))
            case "state":
                before, after = TaskState(str(entry.data["from"])), TaskState(str(entry.data["to"]))
                if state is not None and before is not state:
                    yield f"its stream goes on from {before}, and was at {state}"
                if (before, after) not in _STEPS and before is not TaskState.SUBMITTED:
                    yield f"it went from {before} to {after}"
                given = int(str(entry.data["attempt"])), int(str(entry.data["epoch"]))
                if given[0] < fences[0] or given[1] < fences[1]:
                    yield f"attempt and epoch fell from {fences} to {given}"
                state, fences = after, given
            case _:
                pass
    ends = [index for index, entry in enumerate(entries) if entry.kind == "end"]
    if ends != [len(entries) - 1]:
        yield f"its stream has ends at {ends} of {len(entries)} entries"


_STEPS = {(before, after) for (before, _), after in TRANSITIONS.items()}


def _of_tokens(errand: Errand, record: TaskRecord, ids: Sequence[int]) -> Iterator[str]:
    right = right_ids(errand.task)
    if list(ids) != right[: len(ids)]:
        yield f"committed {ids}, right is {right}"
    elif record.state is TaskState.COMPLETED and len(ids) != len(right):
        yield f"ended with {len(ids)} of {len(right)} tokens"
    if record.num_committed != len(ids):
        yield f"{record.num_committed} tokens are said to be committed, and {len(ids)} are"


async def _of_proof(record: TaskRecord, registry: TaskRegistry, receipts: ReceiptStore) -> Sequence[str]:
    """What is committed has f + 1 equal signed digests of different nodes at every stage, from the first row on."""
    task_id = record.task.task_id
    try:
        bundle = bundle_of(
            record,
            await receipts.entries(task_id),
            await registry.tokens(task_id),
            await receipts.tail_audit(task_id),
        )
        check_bundle(bundle)
    except ButterflyError as error:
        return [f"its proof does not hold: {error.message}"]
    return () if len(bundle.answer_ids) == record.num_committed else ["its proof ends before its answer"]


async def host_faults(name: str, peer: PeerClient, *, num_workers: int) -> tuple[str, ...]:
    """What is left behind on a worker or a coordinator, and who is missing. `num_workers`: that are here."""
    try:
        if name.startswith("worker"):
            worker = await peer.get("/state", WorkerState)
            left = [f"seat {seat.task_id} {seat.lane}/{seat.stage} of epoch {seat.epoch}" for seat in worker.seats]
            left += ["drafts wait"] * bool(worker.drafts_waiting) + ["reports wait"] * bool(worker.reports_waiting)
        else:
            state = await peer.get("/state", CoordinatorState)
            nodes = (await peer.get("/nodes", NodeList)).nodes
            ready = [node for node in nodes if node.state is NodeState.READY]
            left = [f"{state.sessions} sessions"] * bool(state.sessions)
            left += [f"slots of {node.node_id[:8]} are taken: {node.slots_used}" for node in nodes if node.slots_used]
            if len(ready) != num_workers:
                states = sorted(f"{node.state} {node.reason}" for node in nodes)
                left.append(f"{len(ready)} of {num_workers} nodes are ready: {states}")
    except ButterflyError as error:
        left = [f"does not answer: {error.message}"]
    return tuple(f"{name}: {what}" for what in left)


def is_over(record: TaskRecord) -> bool:
    return record.state in TERMINAL
