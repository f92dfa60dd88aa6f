"""A partitioner in this process: cuts a small model evenly over the first nodes it is given."""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import replace

from services.coordinator.domain.token_table import TokenTable
from services.coordinator.ports import Partitioner
from shared.domain.errors import (
    ModelNotFound,
    NoCapacity,
    PeerUnavailable,
    VerificationUnavailable,
)
from shared.domain.ids import ModelId, NodeId, PlanId
from shared.domain.layers import LayerInfo, ModelInfo
from shared.domain.plan import (
    Lane,
    LayerRange,
    NodeCapability,
    Partition,
    PartitionPlan,
    Seating,
    shows_seat,
)

TINY = ModelInfo(
    model_id=ModelId("tiny"),
    root="ab" * 32,
    architecture="llama",
    n_embd=64,
    n_vocab=256,
    context_tokens=128,
    layers=tuple(LayerInfo(index, f"block.{index}", 1_000, 2_000, 256, 128) for index in range(6)),
    embedding_bytes=1_000,
    head_bytes=1_000,
    file_bytes=10_000,
    has_chat_template=True,
    splittable=True,
)


ONE_LANE = Seating()


def token_block(tokens: Sequence[bytes]) -> bytes:
    """A token table as the partitioner sends it."""
    return struct.pack("<I", len(tokens)) + b"".join(struct.pack("<H", len(token)) + token for token in tokens)


class FakePartitioner(Partitioner):
    """Token i of the model stands for the byte i."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], int | None]] = []
        """Nodes and number of stages of every plan asked for."""
        self.table_calls = 0
        self.is_away = False
        self.min_nodes = 1

    async def plan(
        self,
        model_id: ModelId,
        nodes: Sequence[NodeCapability],
        *,
        num_stages: int | None,
        seating: Seating = ONE_LANE,
    ) -> PartitionPlan:
        self.asked.append((tuple(node.node_id for node in nodes), num_stages))
        if self.is_away:
            raise PeerUnavailable("partitioner cannot be reached")
        if seating.num_lanes > 1:
            kinds = [node.kind for node in nodes]
            nodes = [node for node in nodes if node.kind == max(kinds, key=kinds.count)]
        count = num_stages or min(3, len(nodes))
        if len(nodes) < max(count, self.min_nodes):
            raise NoCapacity(f"{len(nodes)} nodes are too few")
        if len(nodes) < seating.num_lanes:
            raise VerificationUnavailable(f"{len(nodes)} nodes are too few for {seating.num_lanes} lanes")
        made = _apart([node.node_id for node in nodes], count, seating)
        return replace(made, spare=len(nodes) - seating.num_lanes)

    async def model(self, model_id: ModelId) -> ModelInfo:
        if self.is_away:
            raise PeerUnavailable("partitioner cannot be reached")
        if model_id != TINY.model_id:
            raise ModelNotFound(f"the partitioner has no model {model_id}")
        return TINY

    async def token_table(self, model_id: ModelId) -> TokenTable:
        self.table_calls += 1
        return TokenTable(token_block([bytes([byte]) for byte in range(256)]))


def _apart(nodes: Sequence[NodeId], count: int, seating: Seating) -> PartitionPlan:
    """The first even plan that keeps marked pairs from sitting side by side."""
    for order in itertools.permutations(nodes, count):
        links = set(zip(order, (*order[1:], order[0]), strict=True)) if count > 1 else set()
        if any((a, b) in links or (b, a) in links for a, b in seating.apart):
            continue
        made = even_plan(order, num_lanes=seating.num_lanes)
        lanes = (*seating.keep, *made.lanes[len(seating.keep) :])
        stages = zip(*(lane.partitions for lane in lanes), strict=True)
        if all(len({seat.node_id for seat in stage}) == len(lanes) for stage in stages):
            return replace(made, lanes=lanes)
    raise NoCapacity("these nodes cannot be kept apart")


def even_plan(nodes: Sequence[str], *, num_lanes: int = 1) -> PartitionPlan:
    """The layers of `TINY`, cut evenly over `nodes` in their order; each further lane has them turned by one."""
    borders = [round(stage * len(TINY.layers) / len(nodes)) for stage in range(len(nodes) + 1)]
    lanes = tuple(
        Lane(
            lane,
            tuple(
                Partition(stage, NodeId(nodes[(stage - lane) % len(nodes)]), LayerRange(*borders[stage : stage + 2]))
                for stage in range(len(nodes))
            ),
        )
        for lane in range(num_lanes)
    )
    return PartitionPlan(
        plan_id=PlanId("-".join(("plan", *nodes, str(num_lanes)))),
        model_id=TINY.model_id,
        model_root=TINY.root,
        strategy="uniform",
        lanes=lanes,
        blind=shows_seat(lanes) is None,
    )
