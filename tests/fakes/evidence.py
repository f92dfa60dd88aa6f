"""Evidence in memory."""

from collections.abc import Mapping

from services.coordinator.ports import MAX_EVIDENCE_LISTED, EvidenceStore


class MemoryEvidenceStore(EvidenceStore):
    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, object]] = {}

    async def put(self, evidence_id: str, evidence: Mapping[str, object]) -> None:
        self.kept.setdefault(evidence_id, evidence)

    async def get(self, evidence_id: str) -> Mapping[str, object] | None:
        return self.kept.get(evidence_id)

    async def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.kept)[:MAX_EVIDENCE_LISTED])
