"""Shows what proved a node guilty."""

from collections.abc import Mapping

from services.coordinator.ports import EvidenceStore
from services.coordinator.service.interfaces import EvidenceInterface
from shared.domain.errors import EvidenceNotFound


class EvidenceShelf(EvidenceInterface):
    def __init__(self, store: EvidenceStore) -> None:
        self._store = store

    async def find(self, evidence_id: str) -> Mapping[str, object]:
        evidence = await self._store.get(evidence_id)
        if evidence is None:
            raise EvidenceNotFound(f"there is no evidence {evidence_id}, or it was kept long enough")
        return evidence
