"""What a client asks for, whatever route it came by: parsed, not yet tokenised."""

from dataclasses import dataclass

from services.api.domain.chat_template import ChatMessage
from shared.domain.ids import ModelId
from shared.domain.task import SamplerParams, TaskKind, Verification


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class TaskTerms:
    """Butterfly's own options. None: the configured default."""

    verification: Verification | None = None
    max_byzantine: int | None = None
    hold: bool | None = None
    """Whether nothing is to be shown before the answer's tail audit has passed."""
    priority: int = 0
    deadline_s: float | None = None
    result_ttl_s: int = 86_400
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class WantedAnswer:
    kind: TaskKind
    model_id: ModelId
    prompt: Prompt
    max_tokens: int | None
    """None: the default of the kind."""
    sampler: SamplerParams
    """`sampler.seed` means something only when `seeded`."""
    seeded: bool
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    terms: TaskTerms = TaskTerms()
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    owner: str
    """Name of the API key; tasks belong to it."""
    idempotency_key: str | None = None
    payload_hash: str = ""
    """Of the request's body: the same key with another hash is refused."""
