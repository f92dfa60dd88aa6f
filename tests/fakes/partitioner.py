"""A partitioner in this process: cuts a small model evenly over the first nodes it is given."""

import struct
from collections.abc import Sequence

from services.coordinator.domain.token_table import TokenTable
from services.coordinator.ports import Partitioner
from shared.domain.errors import ModelNotFound, NoCapacity, PeerUnavailable
from shared.domain.ids import ModelId, NodeId, PlanId
from shared.domain.layers import LayerInfo, ModelInfo
from shared.domain.plan import Lane, LayerRange, NodeCapability, Partition, PartitionPlan

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
        self, model_id: ModelId, nodes: Sequence[NodeCapability], *, num_stages: int | None
    ) -> PartitionPlan:
        self.asked.append((tuple(node.node_id for node in nodes), num_stages))
        if self.is_away:
            raise PeerUnavailable("partitioner cannot be reached")
        count = num_stages or min(3, len(nodes))
        if len(nodes) < max(count, self.min_nodes):
            raise NoCapacity(f"{len(nodes)} nodes are too few")
        return even_plan([node.node_id for node in nodes[:count]])

    async def model(self, model_id: ModelId) -> ModelInfo:
        if self.is_away:
            raise PeerUnavailable("partitioner cannot be reached")
        if model_id != TINY.model_id:
            raise ModelNotFound(f"the partitioner has no model {model_id}")
        return TINY

    async def token_table(self, model_id: ModelId) -> TokenTable:
        self.table_calls += 1
        return TokenTable(token_block([bytes([byte]) for byte in range(256)]))


def even_plan(nodes: Sequence[str]) -> PartitionPlan:
    """The layers of `TINY`, cut evenly over `nodes` in their order."""
    borders = [round(stage * len(TINY.layers) / len(nodes)) for stage in range(len(nodes) + 1)]
    partitions = tuple(
        Partition(stage, NodeId(node), LayerRange(borders[stage], borders[stage + 1]))
        for stage, node in enumerate(nodes)
    )
    return PartitionPlan(
        plan_id=PlanId("plan-" + "-".join(nodes)),
        model_id=TINY.model_id,
        model_root=TINY.root,
        strategy="uniform",
        lanes=(Lane(0, partitions),),
    )
