"""What events tell of each node. Bounded: the node heard of longest ago is forgotten first."""

from collections import OrderedDict
from dataclasses import dataclass, field

from services.metrics.domain.windows import SketchWindow
from shared.events.catalogue import Event, NodeFailure, NodeJoined, NodeStateChanged, StageLoaded, StepTimed

MAX_NODES = 1_024
MAX_STAGES = 64


@dataclass(slots=True)
class NodeRecord:
    step: SketchWindow
    state: str = "unknown"
    address: str = ""
    failures: int = 0
    last_event_s: float = 0.0
    stages: list[str] = field(default_factory=list)


class NodeRecords:
    def __init__(self, retention_s: int) -> None:
        self._retention_s = retention_s
        self._nodes: OrderedDict[str, NodeRecord] = OrderedDict()

    def get(self, node_id: str) -> NodeRecord | None:
        return self._nodes.get(node_id)

    def all(self) -> dict[str, NodeRecord]:
        return dict(self._nodes)

    def apply(self, event: Event, *, at_s: float, is_trusted: bool) -> None:
        """Take note of an event about a node; others change nothing.

        A claim (not trusted) adds to a known node only: made-up ids must not push real nodes out.
        """
        if not is_trusted and getattr(event, "node_id", None) not in self._nodes:
            return
        match event:
            case NodeJoined(node_id=node_id, address=address):
                record = self._record(node_id, at_s)
                record.state, record.address, record.stages = "joining", address, []
            case NodeStateChanged(node_id=node_id, to_state=to_state, address=address):
                record = self._record(node_id, at_s)
                record.state, record.address = to_state, address or record.address
            case NodeFailure(node_id=node_id):
                record = self._record(node_id, at_s)
                record.state, record.failures = "lost", record.failures + 1
            case StageLoaded(node_id=node_id, model_id=model_id, start=start, end=end):
                record = self._record(node_id, at_s)
                record.stages = [*record.stages, f"{model_id}:{start}-{end}"][-MAX_STAGES:]
            case StepTimed(node_id=node_id, duration_ms=duration_ms):
                self._record(node_id, at_s).step.add(duration_ms, at_s=at_s)
            case _:
                pass

    def _record(self, node_id: str, at_s: float) -> NodeRecord:
        record = self._nodes.setdefault(node_id, NodeRecord(SketchWindow(self._retention_s)))
        record.last_event_s = at_s
        self._nodes.move_to_end(node_id)
        if len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)
        return record
