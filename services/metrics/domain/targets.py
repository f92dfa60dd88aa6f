"""Where Prometheus finds the processes: their own announcements and the nodes that joined."""

from collections.abc import Iterable

from services.metrics.domain.nodes import NodeRecord
from shared.contracts.metrics import ScrapeTarget

ANNOUNCED_FOR_S = 60.0  # a service announces itself every 10 s
GONE_STATES = frozenset({"lost", "evicted"})


class Announcements:
    """Addresses that trusted services announced, until they fall silent. A worker's word is not taken for its
    address: it could send the scraper anywhere; workers come from the coordinator's events.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}

    def announce(self, source: str, address: str, *, at_s: float) -> None:
        self._seen[source, address] = at_s
        for key in [key for key, seen_s in self._seen.items() if at_s - seen_s > ANNOUNCED_FOR_S]:
            del self._seen[key]

    def alive(self, *, now_s: float) -> list[tuple[str, str]]:
        return sorted(key for key, seen_s in self._seen.items() if now_s - seen_s <= ANNOUNCED_FOR_S)


def scrape_targets(services: Iterable[tuple[str, str]], nodes: Iterable[tuple[str, NodeRecord]]) -> list[ScrapeTarget]:
    """One entry per process; an address that a service announced is not listed again for a node."""
    targets = {address: ScrapeTarget(targets=(address,), labels={"service": name}) for name, address in services}
    for node_id, record in nodes:
        if record.address and record.state not in GONE_STATES:
            labels = {"service": "worker", "node_id": node_id}
            targets[record.address] = ScrapeTarget(targets=(record.address,), labels=labels)
    return list(targets.values())
