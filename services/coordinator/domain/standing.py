"""Who may not serve: nodes proven guilty, for good, and odd ones, for a while."""

from dataclasses import dataclass

from shared.domain.ids import NodeId

FIRST_QUARANTINE_S = 60.0
LONGEST_QUARANTINE_S = 3_600.0
GOOD_FOR_S = 86_400.0  # so long out of quarantine: the next one is short again


@dataclass(frozen=True, slots=True)
class Standing:
    """Why a node is kept away. Times are wall time: they outlive the process."""

    node_id: NodeId
    is_evicted: bool
    reason: str
    since_s: float
    until_s: float | None = None
    """When a quarantine ends by itself; None: when an operator says so."""
    times: int = 1
    """Quarantines in a row."""
    evidence_id: str = ""
    address: str = ""
    """Where the node was, if it was known; for people."""

    @property
    def strength(self) -> tuple[bool, bool, float]:
        """Of two replicas' words on one node the stronger one counts. (In Lua: `shared/registry/lua/standing.lua`.)"""
        return self.is_evicted, self.until_s is None, self.until_s or 0.0

    def holds(self, wall_s: float) -> bool:
        return self.is_evicted or self.until_s is None or wall_s < self.until_s


def quarantined(
    before: Standing | None, node_id: NodeId, *, reason: str, address: str, wall_s: float, until_reinstated: bool
) -> Standing:
    """A quarantine that begins now, longer than the one before. What holds already and longer stays as it is."""
    if before is not None and before.holds(wall_s) and (before.until_s is None or not until_reinstated):
        return before
    is_again = before is not None and before.until_s is not None and wall_s < before.until_s + GOOD_FOR_S
    times = before.times + 1 if before is not None and is_again else 1
    length_s = min(LONGEST_QUARANTINE_S, FIRST_QUARANTINE_S * 2 ** min(times - 1, 10))
    return Standing(
        node_id=node_id,
        is_evicted=False,
        reason=reason,
        since_s=wall_s,
        until_s=None if until_reinstated else wall_s + length_s,
        times=times,
        address=address,
    )
