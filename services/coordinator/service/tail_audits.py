"""Audits finished answers, one at a time, beside the sessions and behind them (verification.md section 9)."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from services.coordinator.domain.session import Subject
from services.coordinator.domain.tail_lane import Answer, Differs, fresh_seats, read_answer
from services.coordinator.domain.tail_line import Finished, Waiting
from services.coordinator.service.membership import Member
from services.coordinator.service.parts import Parts
from services.coordinator.service.sessions import Sessions
from services.coordinator.service.tail_run import Inconclusive, Outcome, Passed, Refuted, TailRun
from shared.domain.bundle import committed_entries
from shared.domain.errors import ButterflyError, NoCapacity
from shared.domain.ids import Epoch, NodeId, PlanId
from shared.domain.layers import ModelInfo, kv_bytes_per_token, stage_weight_bytes
from shared.domain.plan import LayerRange, NodeCapability, Partition
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
    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        self._parts, self._sessions = parts, sessions

    async def run_once(self) -> None:
        """Wait for an answer and audit it; to be called in a loop."""
        waiting = await self._parts.tail.next()
        task_id = waiting.finished.subject.task.task_id
        try:
            await self._audit(waiting)
        except ButterflyError as error:  # nobody waits for it
            log.info("tail_audit_given_up", extra={"task_id": task_id, "code": error.code})
            await self._skip(waiting.finished, waiting.finished.epoch, error.code)

    async def _audit(self, waiting: Waiting) -> None:
        """Raises what the stores raise."""
        finished = waiting.finished
        answer = await self._answer(finished)
        epoch, suspects, reason = finished.epoch, set[NodeId](), NO_FRESH_NODES
        for _ in range(MAX_TRIES):
            run, reason = await self._open(waiting, answer, epoch, suspects)
            if run is None:
                break
            epoch = run.session.epoch
            with self._sessions.hosting(run):
                outcome = await run.run()
            undecided = await self._settle(finished, epoch, outcome)
            if undecided is None:
                return
            reason = undecided.reason
            if undecided.suspect is not None:
                suspects.add(undecided.suspect)
            if self._parts.clock.now_s() >= waiting.until_s:
                break
        await self._skip(finished, epoch, reason)

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

        def can_hold(node: NodeCapability, layers: LayerRange) -> bool:
            """Beside what it holds: an audit must not make a node drop what sessions come back for."""
            refs = loaded[node.node_id]
            if any(ref.model_root != model.root for ref in refs):
                return any((ref.model_root, ref.layers) == (model.root, layers) for ref in refs)
            stages = {layers, *(ref.layers for ref in refs)}
            return sum(_stage_bytes(model, node, each) for each in stages) <= node.memory_bytes

        nodes = [member.capability for member in members]
        self._parts.tail.secret.shuffle(nodes)
        return fresh_seats(answer, nodes, can_hold)

    # --- what it came to

    async def _settle(self, finished: Finished, epoch: Epoch, outcome: Outcome) -> Inconclusive | None:
        """None: that was the end of it."""
        task_id = finished.subject.task.task_id
        match outcome:
            case Passed(proof=proof):
                await self._keep(finished, proof)
                await self._parts.tail.note(task_id, epoch, TailState.PASSED, "")
            case Refuted(proof=proof, differs=differs):
                await self._keep(finished, proof)
                await self._revoke(finished, epoch, differs)
            case Inconclusive():
                return outcome
        return None

    async def _keep(self, finished: Finished, proof: TailAudit) -> None:
        await self._parts.receipts.keep_tail_audit(finished.subject.task.task_id, proof)

    async def _revoke(self, finished: Finished, epoch: Epoch, differs: Differs) -> None:
        """f + 1 say one thing and one says another: nobody is convicted, nobody of them serves for now."""
        task_id, said = finished.subject.task.task_id, differs.said.receipt
        log.error(
            "answer_revoked",
            extra={"task_id": task_id, "stage": said.stage, "window": said.window, "nodes": differs.nodes},
        )
        await self._parts.tail.note(
            task_id, epoch, TailState.FAILED, f"another result at stage {said.stage}, window {said.window}"
        )
        self._parts.events.publish(AnswerRevoked(task_id, said.stage, said.window))
        for node_id in differs.nodes:
            try:
                await self._parts.members.quarantine(
                    node_id, f"a tail audit contradicts what it and others signed for task {task_id}"
                )
            except ButterflyError as error:  # it has left, or the quarantine outlives this process only
                log.warning("not_quarantined", extra={"node_id": node_id, "code": error.code})

    async def _skip(self, finished: Finished, epoch: Epoch, reason: str) -> None:
        await self._parts.tail.note(finished.subject.task.task_id, epoch, TailState.SKIPPED, reason)


def _stage_bytes(model: ModelInfo, node: NodeCapability, layers: LayerRange) -> int:
    """Weights, and the KV cache of all slots."""
    kv_bytes = kv_bytes_per_token(model, layers.start, layers.end) * node.slots * node.context_tokens
    return stage_weight_bytes(model, layers.start, layers.end) + kv_bytes
