"""Shows what proved a node guilty."""

from collections.abc import Mapping

from services.coordinator.ports import EvidenceStore
from services.coordinator.service.interfaces import EvidenceInterface
from shared.contracts.coordinator import EvidenceList, EvidenceSummary
from shared.domain.errors import EvidenceNotFound
from shared.domain.ids import NodeId


class EvidenceShelf(EvidenceInterface):
    def __init__(self, store: EvidenceStore) -> None:
        self._store = store

    async def list(self) -> EvidenceList:
        found = [(evidence_id, await self._store.get(evidence_id)) for evidence_id in await self._store.ids()]
        return EvidenceList(
            evidence=tuple(
                EvidenceSummary(
                    evidence_id=evidence_id,
                    node_id=NodeId(str(body["node_id"])),
                    rule=int(str(body["rule"])),
                    detail=str(body["detail"]),
                )
                for evidence_id, body in found
                if body is not None
            )
        )

    async def find(self, evidence_id: str) -> Mapping[str, object]:
        evidence = await self._store.get(evidence_id)
        if evidence is None:
            raise EvidenceNotFound(f"there is no evidence {evidence_id}, or it was kept long enough")
        return evidence
