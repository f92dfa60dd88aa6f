"""Audits finished answers (verification.md section 9): those that were given one at a time and behind the sessions,
those that are held back at once and like a session, for their clients wait."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from services.coordinator.domain.lane_book import Seated
from services.coordinator.domain.session import Subject
from services.coordinator.domain.tail_lane import Answer, fresh_seats, read_answer
from services.coordinator.domain.tail_line import WAIT_S, Finished, failure_code
from services.coordinator.domain.tail_opinions import Opinions, believed, unheard
from services.coordinator.service.member import Member
from services.coordinator.service.parts import Parts
from services.coordinator.service.sessions import Sessions
from services.coordinator.service.tail_run import Inconclusive, Passed, Refuted, TailRun
from shared.domain.bundle import committed_entries
from shared.domain.errors import ButterflyError, NoCapacity, RegistryUnavailable
from shared.domain.ids import Epoch, NodeId, PlanId, TaskId
from shared.domain.layers import ModelInfo, kv_bytes_per_token, stage_weight_bytes
from shared.domain.plan import LayerRange, NodeCapability, Partition, failure_domain
from shared.domain.receipt import Receipt
from shared.domain.tail_audit import TailAudit
from shared.domain.tail_state import TailState
from shared.domain.task_state import TaskState
from shared.events.catalogue import AnswerRevoked, TaskCompleted, TaskFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_TRIES = 3
"""Lanes that may be lost or end in a quarrel, one after another, before an audit is given up."""
RETRY_S = 1.0
LIMIT_S = 300.0
"""One audit, waiting for slots not counted."""
NO_FRESH_NODES = "no fresh nodes for every stage"


class TailAudits:
    def __init__(self, parts: Parts, sessions: Sessions, *, spread_by: str) -> None:
        """`spread_by`: label in which auditors must differ from those who signed; empty: other nodes are enough."""
        self._parts, self._sessions, self._spread_by = parts, sessions, spread_by

    async def run_once(self) -> None:
        """Wait for an answer and audit it; to be called in a loop."""
        waiting = await self._parts.tail.next()
        await self._audit(waiting.finished, until_s=waiting.until_s)

    async def run_held_once(self) -> None:
        """Wait for an answer that is held back and begin to audit it; to be called in a loop."""
        finished = await self._parts.tail.next_held()
        _ = self._parts.tasks.start(self._release(finished), name=f"held-{finished.task_id}")

    async def _release(self, finished: Finished) -> None:
        """Its outcome has to be known before its deadline."""
        try:
            await self._audit(finished, until_s=finished.subject.deadline_at_s - RETRY_S)
        finally:
            self._parts.tail.settled(finished.task_id)

    async def _audit(self, finished: Finished, *, until_s: float) -> None:
        case = _Case(finished, finished.epoch)
        try:
            await self._hear(case, await self._answer(finished), until_s=until_s)
        except ButterflyError as error:  # nobody waits for it
            log.info("tail_audit_given_up", extra={"task_id": case.task_id, "code": error.code})
            case.reason = error.code
        await self._settle(case)

    async def _hear(self, case: "_Case", answer: Answer, *, until_s: float) -> None:
        """Have lanes compute it until its fate is known, or there are no more to be asked."""
        num_tries = 0
        while num_tries < MAX_TRIES and not case.opinions.is_settled:
            num_tries += 1
            run = await self._open(case, answer, until_s)
            if run is None:
                return
            with self._sessions.hosting(run):
                outcome = await run.run()
            match outcome:
                case Inconclusive(reason=reason, suspect=suspect):
                    case.reason = reason
                    if suspect is not None:
                        case.suspects.add(suspect)
                    if self._parts.clock.now_s() >= until_s:
                        return
                case Passed() | Refuted():
                    await self._weigh(case, outcome)
                    num_tries = 0  # each time somebody else is asked
                    if not case.finished.is_held:
                        until_s = self._parts.clock.now_s() + WAIT_S

    async def _weigh(self, case: "_Case", outcome: Passed | Refuted) -> None:
        """What follows from one more audit; who is alone with what it signed does not serve for now."""
        before = case.opinions
        differs = outcome.differs if isinstance(outcome, Refuted) else None
        case.opinions = believed(before, differs, outcome.convicted)
        case.proof = outcome.proof
        case.suspects |= outcome.convicted
        if isinstance(outcome, Refuted):
            case.seats = outcome.seats
        for node_id in case.opinions.alone - before.alone:
            case.suspects.add(node_id)
            case.reason = f"node {node_id} came to another result, and a second audit to the committed one"
            log.error("auditor_contradicted", extra={"task_id": case.task_id, "node_id": node_id})
            await self._parts.members.set_aside(
                node_id, f"f + 1 nodes and a fresh one contradict what it signed in an audit of task {case.task_id}"
            )

    async def _answer(self, finished: Finished) -> Answer:
        task = finished.subject.task
        entries = await self._patiently(lambda: self._parts.receipts.entries(task.task_id))
        record = await self._patiently(lambda: self._parts.registry.record(task.task_id))
        committed = committed_entries(entries, num_tokens=record.num_committed, has_completed=True)
        return read_answer(task.prompt_ids, committed)

    async def _open(self, case: "_Case", answer: Answer, until_s: float) -> TailRun | None:
        """A lane with slots and an epoch. None: there is none, nor in time. For an answer that is held back nodes may
        come."""
        parts, subject, doubt = self._parts, case.finished.subject, case.opinions.doubt
        doubted = None if doubt is None else doubt.said.receipt
        asked = answer if doubted is None else answer.doubted(doubted, case.seats)
        while True:
            members = [member for member in parts.members.ready() if member.node_id not in case.suspects]
            seats = self._fresh_seats(
                subject.model,
                asked,
                members,
                doubted=doubted,
                may_drop=case.finished.is_held,
            )
            if seats is None:
                case.reason = NO_FRESH_NODES
                if doubt is not None or not case.finished.is_held:
                    return None
            else:
                run = TailRun(parts, self._limited(case.finished, until_s), asked, doubt=doubt)
                nodes = {member.node_id: member.capability for member in members}
                plan_id = PlanId(f"{parts.tail.secret.getrandbits(128):032x}")
                try:
                    await run.open(seats, nodes, after=case.epoch, plan_id=plan_id)
                except (NoCapacity, RegistryUnavailable) as error:
                    case.reason = error.message
                else:
                    case.epoch = run.session.epoch
                    return run
            if parts.clock.now_s() + RETRY_S > until_s or not await self._is_wanted(case):
                return None
            await parts.clock.sleep(RETRY_S)

    async def _is_wanted(self, case: "_Case") -> bool:
        """An answer that is held back may be cancelled while it waits for nodes."""
        if not case.finished.is_held:
            return True
        record = await self._patiently(lambda: self._parts.registry.record(case.task_id))
        return record.state is TaskState.AGGREGATING

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """While the registry is away it waits."""
        while True:
            try:
                return await read()
            except RegistryUnavailable:
                await self._parts.clock.sleep(RETRY_S)

    def _limited(self, finished: Finished, until_s: float) -> Subject:
        limit_s = until_s if finished.is_held else self._parts.clock.now_s() + LIMIT_S
        return replace(finished.subject, deadline_at_s=limit_s)

    def _fresh_seats(
        self, model: ModelInfo, answer: Answer, members: Sequence[Member], *, doubted: Receipt | None, may_drop: bool
    ) -> tuple[Partition, ...] | None:
        """Drawn at random: nobody is to know beforehand who audits. `doubted`: what has to be judged, by a trusted node
        if one is fresh; who signed it is taken only where nobody else is. `may_drop`: rather than do without, have
        nodes drop stages that are not in use, as for a session."""
        loaded = {member.node_id: list(member.loaded.values()) for member in members}
        domains = {layers: self._domains(answer, layers) for layers in answer.cut}

        def can_hold_alone(node: NodeCapability, layers: LayerRange) -> bool:
            is_fresh = failure_domain(node, self._spread_by) not in domains[layers]
            return is_fresh and _stage_bytes(model, node, layers) <= node.memory_bytes

        def can_hold(node: NodeCapability, layers: LayerRange) -> bool:
            """Beside what it holds: an audit must not make a node drop what sessions come back for."""
            if not can_hold_alone(node, layers):
                return False
            refs = loaded[node.node_id]
            if any(ref.model_root != model.root for ref in refs):
                return any((ref.model_root, ref.layers) == (model.root, layers) for ref in refs)
            stages = {layers, *(ref.layers for ref in refs)}
            return sum(_stage_bytes(model, node, each) for each in stages) <= node.memory_bytes

        nodes = [member.capability for member in members]
        self._parts.tail.secret.shuffle(nodes)
        if doubted is not None:
            nodes.sort(key=lambda node: node.node_id == doubted.node_id)
        for can in (can_hold, can_hold_alone) if may_drop else (can_hold,):
            seats = fresh_seats(
                answer,
                nodes,
                can,
                referees=self._parts.trusted,
                doubted_stage=None if doubted is None else doubted.stage,
            )
            if seats is not None:
                return seats
        return None

    def _domains(self, answer: Answer, layers: LayerRange) -> set[tuple[str, str]]:
        """Failure domains of those who signed for these layers, as far as they are still here."""
        members = [
            self._parts.members.find(seat.node_id) for seat in answer.seated if seat.shares(layers.start, layers.end)
        ]
        return {failure_domain(member.capability, self._spread_by) for member in members if member is not None}

    # --- what it came to

    async def _settle(self, case: "_Case") -> None:
        opinions = unheard(case.opinions)
        if opinions.guilty is not None and opinions.doubt is not None:
            said = opinions.doubt.said.receipt
            await self._alarm(case, said, opinions.guilty)
            await self._keep(case)
            await self._end(case, TailState.FAILED, f"another result at stage {said.stage}, window {said.window}")
        elif opinions.has_passed and await self._keep(case):
            await self._end(case, TailState.PASSED, case.reason if opinions.alone else "")
        else:
            await self._end(case, TailState.SKIPPED, case.reason)

    async def _end(self, case: "_Case", state: TailState, reason: str) -> None:
        """Keep what became of it: that also ends a task whose answer was held back."""
        parts, finished = self._parts, case.finished
        is_noted = await parts.tail.note(case.task_id, case.epoch, state, reason)
        if not finished.is_held or not is_noted:
            return
        task = finished.subject.task
        latency_ms = (parts.clock.now_s() - finished.subject.created_at_s) * 1000
        if state is TailState.PASSED:
            parts.events.publish(
                TaskCompleted(task.task_id, latency_ms, tuple(sorted(finished.nodes)), task.verification)
            )
        else:
            parts.events.publish(TaskFailed(task.task_id, failure_code(state), latency_ms, task.verification))

    async def _keep(self, case: "_Case") -> bool:
        """Whether the proof is kept: not of an audit after which others took an epoch. While the registry is away it
        waits."""
        while case.proof is not None:
            try:
                await self._parts.receipts.keep_tail_audit(case.task_id, case.proof)
            except RegistryUnavailable:
                await self._parts.clock.sleep(RETRY_S)
            except ButterflyError as error:
                log.info("tail_audit_not_kept", extra={"task_id": case.task_id, "code": error.code})
                case.reason = error.code
                return False
            else:
                return True
        return False

    async def _alarm(self, case: "_Case", said: Receipt, guilty: Sequence[NodeId]) -> None:
        """Results stand against each other: nobody is convicted, but none of those who may be guilty serves for now."""
        task_id, is_held = case.task_id, case.finished.is_held
        log.error(
            "held_answer_refuted" if is_held else "answer_revoked",
            extra={"task_id": task_id, "stage": said.stage, "window": said.window, "nodes": guilty},
        )
        if not is_held:
            self._parts.events.publish(AnswerRevoked(task_id, said.stage, said.window))
        for node_id in guilty:
            await self._parts.members.set_aside(node_id, f"a tail audit contradicts what was signed for task {task_id}")


@dataclass(slots=True)
class _Case:
    """One answer while it is audited."""

    finished: Finished
    epoch: Epoch
    """The task's present one."""
    suspects: set[NodeId] = field(default_factory=set)
    """Whom the next audit does without."""
    opinions: Opinions = field(default_factory=Opinions)
    seats: Sequence[Seated] = ()
    """Of the lane that came to another result last."""
    proof: TailAudit | None = None
    """Of the last audit that came to its end."""
    reason: str = NO_FRESH_NODES
    """Why there is no more to tell."""

    @property
    def task_id(self) -> TaskId:
        return self.finished.task_id


def _stage_bytes(model: ModelInfo, node: NodeCapability, layers: LayerRange) -> int:
    """Weights, and the KV cache of all slots."""
    kv_bytes = kv_bytes_per_token(model, layers.start, layers.end) * node.slots * node.context_tokens
    return stage_weight_bytes(model, layers.start, layers.end) + kv_bytes
