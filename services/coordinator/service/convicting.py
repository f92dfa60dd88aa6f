"""What becomes of nodes that are proven guilty."""

import logging
from collections.abc import Iterable, Sequence

from services.coordinator.domain.evidence import make_evidence
from services.coordinator.domain.faults import MAX_REASON, FaultKind
from services.coordinator.domain.lane_book import Seated
from services.coordinator.domain.session import Session
from services.coordinator.service.parts import Parts, persist
from shared.domain.passage import Passage, sign_passage
from shared.domain.receipt import SignedReceipt
from shared.domain.window_check import RELAY, Finding

log = logging.getLogger(__name__)


async def evict_guilty(
    parts: Parts,
    session: Session,
    findings: Iterable[Finding],
    *,
    orders: Sequence[Seated],
    ids: Sequence[int],
    first_try: Sequence[SignedReceipt],
    second_try: Sequence[SignedReceipt],
    passage: Passage | None = None,
) -> None:
    """Keep the proof, then send the guilty away: that also ends every other session of theirs here.

    `orders`: of the epoch's seats; `ids`: the prompt's, then those generated; `passage`: what the coordinator saw pass,
    if rule 5 was judged by it. Raises `Over`.
    """
    for finding in findings:
        node_id = finding.node_id
        if node_id is None:
            continue
        evidence_id, body = make_evidence(
            finding,
            orders=[seated.order for seated in orders],
            keys={seated.assignment.node_id: seated.public_key for seated in orders},
            key=parts.key,
            ids=ids,
            num_prompt=len(session.task.prompt_ids),
            first_try=first_try,
            second_try=second_try,
            passages=(sign_passage(parts.key, passage),) if passage and finding.rule == RELAY else (),
        )
        await persist(parts, session, lambda: parts.evidence.put(evidence_id, body))  # noqa: B023  awaited here
        log.warning(
            "node_convicted",
            extra={"node_id": node_id, "rule": finding.rule, "detail": finding.detail, "evidence": evidence_id},
        )
        reason = f"rule {finding.rule}: {finding.detail}"
        session.lose(FaultKind.CONVICTED, reason[:MAX_REASON], suspect=node_id, now_s=parts.clock.now_s())
        parts.tail.evicted(node_id)
        await parts.members.evict(node_id, evidence_id, reason)
