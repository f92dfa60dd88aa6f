"""Audits finished answers, one at a time, beside the sessions and behind them (verification.md section 9)."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from services.coordinator.domain.session import Subject
from services.coordinator.domain.tail_lane import Answer, Differs, fresh_seats, read_answer
from services.coordinator.domain.tail_line import Finished, Waiting
from services.coordinator.service.member import Member
from services.coordinator.service.parts import Parts
from services.coordinator.service.sessions import Sessions
from services.coordinator.service.tail_run import Inconclusive, Passed, Refuted, TailRun
from shared.domain.bundle import committed_entries
from shared.domain.errors import ButterflyError, NoCapacity, RegistryUnavailable
from shared.domain.ids import Epoch, NodeId, PlanId, TaskId
from shared.domain.layers import ModelInfo, kv_bytes_per_token, stage_weight_bytes
from shared.domain.plan import LayerRange, NodeCapability, Partition, failure_domain
from shared.domain.tail_audit import TailAudit, TailState
from shared.events.catalogue import AnswerRevoked

log = logging.getLogger(__name__)

MAX_TRIES = 3
"""Lanes that may be lost or end in a quarrel before an audit is given up."""
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
        finished, epoch = waiting.finished, waiting.finished.epoch
        suspects: set[NodeId] = set()
        reason = NO_FRESH_NODES
        try:
            answer = await self._answer(finished)
            for _ in range(MAX_TRIES):
                run, reason = await self._open(waiting, answer, epoch, suspects)
                if run is None:
                    break
                epoch = run.session.epoch
                with self._sessions.hosting(run):
                    outcome = await run.run()
                if not isinstance(outcome, Inconclusive):
                    await self._settle(finished, epoch, outcome)
                    return
                reason = outcome.reason
                if outcome.suspect is not None:
                    suspects.add(outcome.suspect)
                if self._parts.clock.now_s() >= waiting.until_s:
                    break
        except ButterflyError as error:  # nobody waits for it
            log.info("tail_audit_given_up", extra={"task_id": finished.task_id, "code": error.code})
            reason = error.code
        await self._parts.tail.note(finished.task_id, epoch, TailState.SKIPPED, reason)

    async def _answer(self, finished: Finished) -> Answer:
        task = finished.subject.task
        entries = await self._parts.receipts.entries(task.task_id)
        record = await self._parts.registry.record(task.task_id)
        committed = committed_entries(entries, num_tokens=record.num_committed, has_completed=True)
        return read_answer(task.prompt_ids, committed)

    async def _open(
        self, waiting: Waiting, answer: Answer, epoch: Epoch, suspects: set[NodeId]
    ) -> tuple[TailRun | None, str]:
        """A lane with slots and an epoch, or None and why there is none: then not in time either."""
        parts, subject = self._parts, waiting.finished.subject
        while True:
            members = [member for member in parts.members.ready() if member.node_id not in suspects]
            seats = self._fresh_seats(subject.model, answer, members)
            if seats is None:
                return None, NO_FRESH_NODES
            run = TailRun(parts, self._limited(subject), answer)
            nodes = {member.node_id: member.capability for member in members}
            plan_id = PlanId(f"{parts.tail.secret.getrandbits(128):032x}")
            try:
                await run.open(seats, nodes, after=epoch, plan_id=plan_id)
            except NoCapacity as error:
                if parts.clock.now_s() + RETRY_S > waiting.until_s:
                    return None, error.message
                await parts.clock.sleep(RETRY_S)
            else:
                return run, ""

    def _limited(self, subject: Subject) -> Subject:
        return replace(subject, deadline_at_s=self._parts.clock.now_s() + LIMIT_S)

    def _fresh_seats(self, model: ModelInfo, answer: Answer, members: Sequence[Member]) -> tuple[Partition, ...] | None:
        """Drawn at random: nobody is to know beforehand who audits."""
        loaded = {member.node_id: list(member.loaded.values()) for member in members}
        domains = {layers: self._domains(answer, layers) for layers in answer.cut}

        def can_hold(node: NodeCapability, layers: LayerRange) -> bool:
            """Beside what it holds: an audit must not make a node drop what sessions come back for."""
            if failure_domain(node, self._spread_by) in domains[layers]:
                return False
            refs = loaded[node.node_id]
            if any(ref.model_root != model.root for ref in refs):
                return any((ref.model_root, ref.layers) == (model.root, layers) for ref in refs)
            stages = {layers, *(ref.layers for ref in refs)}
            return sum(_stage_bytes(model, node, each) for each in stages) <= node.memory_bytes

        nodes = [member.capability for member in members]
        self._parts.tail.secret.shuffle(nodes)
        return fresh_seats(answer, nodes, can_hold)

    def _domains(self, answer: Answer, layers: LayerRange) -> set[tuple[str, str]]:
        """Failure domains of those who signed for these layers, as far as they are still here."""
        members = [
            self._parts.members.find(seat.node_id) for seat in answer.seated if seat.shares(layers.start, layers.end)
        ]
        return {failure_domain(member.capability, self._spread_by) for member in members if member is not None}

    # --- what it came to

    async def _settle(self, finished: Finished, epoch: Epoch, outcome: Passed | Refuted) -> None:
        tail, task_id = self._parts.tail, finished.task_id
        match outcome:
            case Passed(proof=proof):
                await self._keep(task_id, proof)
                await tail.note(task_id, epoch, TailState.PASSED, "")
            case Refuted(proof=proof, differs=differs):
                await self._alarm(task_id, differs)
                await self._keep(task_id, proof)
                said = differs.said.receipt
                reason = f"another result at stage {said.stage}, window {said.window}"
                await tail.note(task_id, epoch, TailState.FAILED, reason)

    async def _keep(self, task_id: TaskId, proof: TailAudit) -> None:
        """While the registry is away it waits. Raises what the store raises else."""
        while True:
            try:
                return await self._parts.receipts.keep_tail_audit(task_id, proof)
            except RegistryUnavailable:
                await self._parts.clock.sleep(RETRY_S)

    async def _alarm(self, task_id: TaskId, differs: Differs) -> None:
        """f + 1 say one thing and one says another: nobody is convicted, but none of them serves for now."""
        said = differs.said.receipt
        log.error(
            "answer_revoked",
            extra={"task_id": task_id, "stage": said.stage, "window": said.window, "nodes": differs.nodes},
        )
        self._parts.events.publish(AnswerRevoked(task_id, said.stage, said.window))
        for node_id in differs.nodes:
            try:
                await self._parts.members.quarantine(
                    node_id, f"a tail audit contradicts what was signed for task {task_id}"
                )
            except ButterflyError as error:  # it has left, or the quarantine outlives this process only
                log.warning("not_quarantined", extra={"node_id": node_id, "code": error.code})


def _stage_bytes(model: ModelInfo, node: NodeCapability, layers: LayerRange) -> int:
    """Weights, and the KV cache of all slots."""
    kv_bytes = kv_bytes_per_token(model, layers.start, layers.end) * node.slots * node.context_tokens
    return stage_weight_bytes(model, layers.start, layers.end) + kv_bytes
