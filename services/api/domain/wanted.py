"""What a client asks for, whatever route it came by: parsed, not yet tokenised."""

from dataclasses import dataclass

from services.api.domain.chat_template import ChatMessage
from shared.domain.errors import InvalidInput, VerificationUnavailable
from shared.domain.ids import ModelId
from shared.domain.plan import Lane, Objective
from shared.domain.plan_figures import Load
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


def verification_of(terms: TaskTerms, default: Verification, max_byzantine: int) -> tuple[Verification, int]:
    """The mode, and how many liars it is to withstand: `max_byzantine` where the terms do not say, and at most. Whether
    the nodes can give it, the scheduler knows. Raises `InvalidInput`, `VerificationUnavailable`."""
    mode = default if terms.verification is None else terms.verification
    if mode is Verification.NONE:
        return mode, 0
    if max_byzantine == 0:
        raise VerificationUnavailable(
            f"verification '{mode}' means nothing here: coordination.max_byzantine is 0",
            param="butterfly.verification",
        )
    if terms.max_byzantine is not None and terms.max_byzantine > max_byzantine:
        raise InvalidInput(f"max_byzantine may be at most {max_byzantine} here", param="butterfly.max_byzantine")
    return mode, max_byzantine if terms.max_byzantine is None else terms.max_byzantine


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
class WantedPlan:
    """What somebody wants to know before the cluster does it. None: as the cluster is configured."""

    model_id: ModelId
    terms: TaskTerms
    load: Load
    strategy: str | None = None
    objective: Objective | None = None
    num_stages: int | None = None


@dataclass(frozen=True, slots=True)
class GivenPlan:
    """A plan made by hand."""

    model_id: ModelId
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    owner: str
    """Name of the API key; tasks belong to it."""
    idempotency_key: str | None = None
    payload_hash: str = ""
    """Of the request's body: the same key with another hash is refused."""
