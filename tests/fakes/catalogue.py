"""What surrounds the gateway beside the scheduler: models, vocabularies, nodes, the other services."""

import dataclasses
from collections.abc import Mapping, Sequence

from services.api.domain.chat_template import ChatMessage
from services.api.ports import Catalogue, ModelVocabulary, Nodes, ServiceHealth, Services, Vocabularies
from shared.contracts.coordinator import NodeView, PublicKeys, SeatView
from shared.domain.errors import ButterflyError, ModelNotFound, NoChatTemplate
from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import ModelInfo
from shared.domain.numerics import Profile
from shared.domain.plan import NodeCapability, for_plans
from shared.domain.session import NodeState
from shared.domain.task import TokenRecord
from tests.fakes.identities import COORDINATOR_KEY, KEYS
from tests.fakes.partitioner import TINY

BYTE_MODEL = dataclasses.replace(
    TINY,
    model_id=ModelId("bytes"),
    root="cd" * 32,
    n_vocab=257,
    context_tokens=4_096,
    created_s=1_700_000_000,
)
END_ID = 256


def tokens_of(text: str | bytes) -> tuple[TokenRecord, ...]:
    """The tokens of `text` in the vocabulary of bytes."""
    data = text.encode() if isinstance(text, str) else text
    return tuple(
        TokenRecord(byte, 1.0, other_id=0, other_logit=0.0, logprob=-0.5, top_logprobs=((byte, -0.5), (65, -2.0)))
        for byte in data
    )


class ByteVocabulary(ModelVocabulary):
    """Token i stands for byte i; token 256 ends an answer."""

    def __init__(self, *, has_template: bool = True) -> None:
        self._has_template = has_template
        self.pieces = (*(bytes((byte,)) for byte in range(256)), b"")
        self.end_ids = (END_ID,)
        self.drops_leading_space = False
        self.longest_piece_bytes = 1

    async def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    async def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        if not self._has_template:
            raise NoChatTemplate("this model has no chat template", param="model")
        return tuple("".join(f"{message.role}:{message.content}\n" for message in messages).encode())


class FixedVocabularies(Vocabularies):
    def __init__(self, vocabulary: ModelVocabulary) -> None:
        self.vocabulary = vocabulary

    async def of(self, model: ModelInfo) -> ModelVocabulary:
        return self.vocabulary


class FakeCatalogue(Catalogue):
    def __init__(self, *models: ModelInfo) -> None:
        self._models = {model.model_id: model for model in models or (BYTE_MODEL,)}
        self.refuses_with: ButterflyError | None = None

    async def models(self) -> tuple[ModelInfo, ...]:
        if self.refuses_with is not None:
            raise self.refuses_with
        return tuple(self._models.values())

    async def model(self, model_id: ModelId) -> ModelInfo:
        if model_id not in {model.model_id for model in await self.models()}:
            raise ModelNotFound(f"the model {model_id} does not exist here")
        return self._models[model_id]


class FakeNodes(Nodes):
    def __init__(self, *nodes: NodeView) -> None:
        self._nodes = nodes
        self.refuses_with: ButterflyError | None = None

    def replace(self, *nodes: NodeView) -> None:
        self._nodes = nodes

    async def nodes(self, *, with_stage_times: bool = False) -> tuple[NodeView, ...]:
        if self.refuses_with is not None:
            raise self.refuses_with
        if with_stage_times:
            return self._nodes
        return tuple(node.model_copy(update={"capability": for_plans(node.capability)}) for node in self._nodes)

    async def keys(self) -> PublicKeys:
        if self.refuses_with is not None:
            raise self.refuses_with
        return PublicKeys(
            coordinator=COORDINATOR_KEY.public_key.hex(),
            nodes={node_id: key.public_key.hex() for node_id, key in KEYS.items()},
        )


def node_view(node_id: str = "node-a", state: NodeState = NodeState.READY) -> NodeView:
    return NodeView(
        node_id=NodeId(node_id),
        state=state,
        address="http://127.0.0.1:8090",
        boot_id="boot-1",
        capability=NodeCapability(NodeId(node_id), 1_000_000, 2.5, slots=16, context_tokens=2_048, host="here"),
        stages=(SeatView(model=BYTE_MODEL.model_id, start=0, end=3, lane=0, profile=Profile.EXACT),),
        slots_used=2,
        heartbeat_age_ms=120,
    )


class FakeServices(Services):
    def __init__(self, **health: ServiceHealth) -> None:
        self.answers = health
        self.num_asked = 0

    async def health(self) -> Mapping[str, ServiceHealth]:
        self.num_asked += 1
        return self.answers
