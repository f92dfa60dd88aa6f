"""Models and nodes for tests of the planner, in small round figures."""

from collections.abc import Sequence

from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import LayerInfo, ModelInfo
from shared.domain.plan import NodeCapability, PlanInput, Seating
from shared.domain.task import Verification

NO_LANES = Seating()


def audited(f: int = 1, **more: object) -> Seating:
    return Seating(Verification.AUDIT, f, **more)  # type: ignore[arg-type]  # a test names fields that exist


def planned_model(
    weights: Sequence[int] = (100,) * 6,
    *,
    model_id: str = "m",
    root: str = "root",
    embedding_bytes: int = 0,
    head_bytes: int = 0,
    kv_bytes: int = 0,
    n_vocab: int = 0,
    splittable: bool = True,
) -> ModelInfo:
    """A model whose layers have as many bytes as FLOPs; its head has 2 x 8 x `n_vocab` FLOPs."""
    return ModelInfo(
        model_id=ModelId(model_id),
        root=root,
        architecture="llama",
        n_embd=8,
        n_vocab=n_vocab,
        context_tokens=64,
        layers=tuple(LayerInfo(i, f"blk.{i}", weight, weight, 32, kv_bytes) for i, weight in enumerate(weights)),
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
        file_bytes=sum(weights),
        has_chat_template=False,
        splittable=splittable,
        reason="" if splittable else "its family runs whole",
    )


def node(
    name: str,
    *,
    memory: int = 10_000,
    speed: float = 1.0,
    slots: int = 1,
    context_tokens: int = 1,
    numerics_class: str = "",
    **labels: str,
) -> NodeCapability:
    return NodeCapability(
        NodeId(name),
        memory,
        speed,
        slots,
        context_tokens,
        numerics_class=numerics_class,
        labels=tuple(sorted(labels.items())),
    )


def question(
    model: ModelInfo | None = None,
    nodes: Sequence[NodeCapability] = (),
    *,
    strategy: str = "load_balanced",
    num_stages: int | None = None,
    seating: Seating = NO_LANES,
) -> PlanInput:
    return PlanInput(model or planned_model(), tuple(nodes), strategy, num_stages, seating)
