"""What workers say. A worker speaks for itself and for the seats it holds; whatever it says is a claim."""

import logging
from typing import Any

from services.coordinator.domain.blame import SEVERAL_PARTNERS, PairMarks
from services.coordinator.domain.faults import FaultKind, kind_of_fault
from services.coordinator.domain.refusals import REFUSALS_TO_QUARANTINE, WITHIN_S, Refusals
from services.coordinator.domain.session import Session
from services.coordinator.service.assigning import stage_ref
from services.coordinator.service.committer import Committer
from services.coordinator.service.interfaces import FromWorker, MessagesInterface
from services.coordinator.service.measuring import Measuring
from services.coordinator.service.member import Member
from services.coordinator.service.membership import Membership
from services.coordinator.service.sessions import Sessions
from shared.contracts.messages import (
    Ack,
    Draft,
    DraftTokens,
    Heartbeat,
    Leave,
    LinkFault,
    NodeMeasured,
    ReceiptPosted,
    SeatReady,
    SessionFault,
    SessionStop,
    StageReady,
)
from shared.domain.errors import ButterflyError, ProtocolViolation, StaleEpoch
from shared.domain.message_router import MessageRouter
from shared.events.catalogue import TokensDrafted
from shared.events.publisher import Publisher
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

MAX_REASON = 500
ACK = Ack()


class Messages(MessagesInterface):
    def __init__(
        self,
        *,
        members: Membership,
        sessions: Sessions,
        committer: Committer,
        measuring: Measuring,
        pair_marks: PairMarks,
        clock: Clock,
        events: Publisher,
    ) -> None:
        self._members = members
        self._events = events
        self._sessions = sessions
        self._committer = committer
        self._measuring = measuring
        self._pair_marks = pair_marks
        self._clock = clock
        self._refusals = Refusals()
        # Any: each handler takes exactly the type under which it stands here.
        self._router: MessageRouter[Member, Any, Ack] = MessageRouter(
            {
                Heartbeat: self._heartbeat,
                Leave: self._leave,
                StageReady: self._stage_ready,
                SeatReady: self._seat_ready,
                DraftTokens: self._draft_tokens,
                ReceiptPosted: self._receipt_posted,
                SessionFault: self._session_fault,
                LinkFault: self._link_fault,
                NodeMeasured: self._node_measured,
            }
        )

    async def handle(self, node_token: str, message: FromWorker) -> Ack:
        sender = self._members.authenticate(node_token)
        try:
            return await self._router.route(sender, message)
        except ProtocolViolation as error:
            await self._refused(sender, error.message)
            raise

    async def unreadable(self, node_token: str) -> None:
        await self._refused(self._members.authenticate(node_token), "a body that is no message")

    async def _refused(self, sender: Member, reason: str) -> None:
        """Rule 7: no proof, no conviction."""
        log.warning("message_refused", extra={"node_id": sender.node_id, "reason": reason[:MAX_REASON]})
        if self._refusals.add(sender.node_id, now_s=self._clock.now_s()):
            told = f"{REFUSALS_TO_QUARANTINE} refused messages within {WITHIN_S:g} s, the last: {reason}"
            await self._members.set_aside(sender.node_id, told[:MAX_REASON])

    async def _heartbeat(self, sender: Member, message: Heartbeat) -> Ack:
        self._members.heartbeat(sender, message)
        self._measuring.beat(sender, message)
        self._sessions.positions(sender, message.sessions)
        return Ack(coordinators=self._members.coordinators())

    async def _leave(self, sender: Member, message: Leave) -> Ack:
        self._members.leave(sender, message)
        return ACK

    async def _stage_ready(self, sender: Member, message: StageReady) -> Ack:
        self._members.stage_ready(sender, message)
        if message.error_code is None:
            self._sessions.stage_ready(sender, message.stage_ref)
        elif message.holds:  # else no session waits for it
            reason = f"{message.error_code}: {message.error}"[:MAX_REASON]
            self._sessions.stage_failed(sender, message.stage_ref, message.error_code, reason)
        return ACK

    async def _seat_ready(self, sender: Member, message: SeatReady) -> Ack:
        _check_choice(message.choice)
        session, lane = self._sessions.get(message.task_id), message.lane
        if message.error_code is None:
            session.seat_ready(sender.node_id, message.epoch, message.stage, lane=lane, now_s=self._clock.now_s())
            return ACK
        session.check_sender(sender.node_id, message.epoch, message.stage, lane=lane)
        if session.plan is not None:
            self._members.not_loading(sender.node_id, stage_ref(session.plan, session.lanes[lane][message.stage]))
        kind = session.refused(sender.node_id, sender.boot_id, message.error_code, now_s=self._clock.now_s())
        self._lose(session, sender, kind, f"{message.error_code}: {message.error}")
        return ACK

    async def _draft_tokens(self, sender: Member, message: DraftTokens) -> Ack:
        """One bad draft spoils no other. Stale ones are normal (an answer ended, a task was cancelled): their worker is
        told to stop them; only a message of nothing but stale drafts is refused as a whole."""
        accepted = 0
        refusals: list[ButterflyError] = []
        for draft in message.drafts:
            try:
                self._draft(sender, draft)
                accepted += 1
            except ButterflyError as error:
                refusals.append(error)
                if isinstance(error, StaleEpoch):
                    stop = SessionStop(task_id=draft.task_id, epoch=draft.epoch, reason="stale")
                    self._sessions.stop_stale(sender, stop)
        wrong = [refusal for refusal in refusals if not isinstance(refusal, StaleEpoch)]
        if wrong:
            raise wrong[0]
        if refusals and not accepted:
            raise refusals[0]
        return ACK

    def _draft(self, sender: Member, draft: Draft) -> None:
        _check_choice(draft.choice)
        if draft.lane != 0:
            raise ProtocolViolation(f"drafts of lane {draft.lane}: only lane 0 drafts")
        session = self._sessions.get(draft.task_id)
        now_s = self._clock.now_s()
        try:
            fresh = session.draft(sender.node_id, draft.epoch, draft.first_position, draft.records, now_s=now_s)
        except ProtocolViolation as error:
            if session.epoch == draft.epoch:
                self._rules_broken(session, sender, error)
            raise
        if fresh:
            if session.is_verified:
                self._tell_drafted(session, fresh)
            self._sessions.progressed(sender.node_id)
            self._committer.add(session)

    def _tell_drafted(self, session: Session, fresh: int) -> None:
        first_index = len(session.records) - fresh
        ids = tuple(record.token_id for record in session.records[first_index:])
        self._events.publish(TokensDrafted(session.task.task_id, first_index, ids))

    async def _receipt_posted(self, sender: Member, message: ReceiptPosted) -> Ack:
        _check_choice(message.choice)
        run = self._sessions.run_of(message.task_id)
        run.session.check_sender(sender.node_id, message.epoch, message.stage, lane=message.lane)
        try:
            run.receipt(sender.node_id, message)
        except ProtocolViolation as error:
            self._rules_broken(run.session, sender, error)
            raise
        self._sessions.progressed(sender.node_id)
        self._measuring.signed(sender, message.receipt.signed(), run.session)
        return ACK

    async def _session_fault(self, sender: Member, message: SessionFault) -> Ack:
        _check_choice(message.choice)
        session = self._sessions.get(message.task_id)
        session.check_sender(sender.node_id, message.epoch, message.stage, lane=message.lane)
        self._lose(session, sender, kind_of_fault(message.error_code), f"{message.error_code}: {message.error}")
        return ACK

    async def _link_fault(self, sender: Member, message: LinkFault) -> Ack:
        log.info("link_fault", extra={"node_id": sender.node_id, "peer": message.peer, "reason": message.reason})
        is_used = self._sessions.link_broken(
            sender.node_id, message.peer, outgoing=message.outgoing, reason=message.reason
        )
        if is_used and message.kind == "refused":
            for node_id in self._pair_marks.add(sender.node_id, message.peer):
                await self._members.set_aside(node_id, SEVERAL_PARTNERS)
        return ACK

    async def _node_measured(self, sender: Member, message: NodeMeasured) -> Ack:
        self._measuring.told(sender, message)
        return ACK

    def _lose(self, session: Session, sender: Member, kind: FaultKind, reason: str) -> None:
        session.lose(kind, reason[:MAX_REASON], suspect=sender.node_id, now_s=self._clock.now_s())

    def _rules_broken(self, session: Session, sender: Member, error: ProtocolViolation) -> None:
        """No proof of anything (rule 7), but this session goes on without the sender."""
        session.exclude(sender.node_id, sender.boot_id)
        session.lose(FaultKind.RULES, error.message, suspect=sender.node_id, now_s=self._clock.now_s())


def _check_choice(choice: int) -> None:
    if choice != 0:
        raise ProtocolViolation(f"there is no choice {choice}")
