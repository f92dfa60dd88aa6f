"""One inference a client asked for."""

from dataclasses import dataclass, field
from enum import StrEnum

from shared.domain.ids import ModelId, TaskId


class TaskKind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"


class Verification(StrEnum):
    """How much of an answer is checked before a client sees it."""

    NONE = "none"
    AUDIT = "audit"
    QUORUM = "quorum"


@dataclass(frozen=True, slots=True, order=True)
class TaskGroup:
    """Tasks that one plan serves: they wait in a queue of their own."""

    model_id: ModelId
    verification: Verification = Verification.NONE
    max_byzantine: int = 0

    def __str__(self) -> str:
        """`model` or `model:audit:1`; model ids have no colon."""
        if self.verification is Verification.NONE:
            return self.model_id
        return f"{self.model_id}:{self.verification}:{self.max_byzantine}"

    @classmethod
    def parse(cls, text: str) -> "TaskGroup":
        """What `str` made."""
        model_id, _, rest = text.partition(":")
        mode, _, max_byzantine = rest.partition(":")
        return cls(ModelId(model_id), Verification(mode), int(max_byzantine)) if rest else cls(ModelId(model_id))


@dataclass(frozen=True, slots=True)
class SamplerParams:
    """The parameters of the token rule (services/worker/domain/token_rule.py); signed into the assignment.

    temperature 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 switch the filter off. `seed` is any 64-bit
    integer. `logprobs`: how many alternatives to report per token; None reports none at all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class StopRules:
    """When an answer ends, beside its token limit."""

    end_ids: tuple[int, ...] = ()
    """Any of these tokens ends the answer and is not part of its text (the model's end tokens, stop_token_ids)."""
    strings: tuple[str, ...] = ()
    """Applied by the coordinator, on the bytes of the committed tokens: a worker never decides when an answer ends."""


@dataclass(frozen=True, slots=True)
class InferenceTask:
    """Immutable once accepted. Token ids, not text: the control plane tokenises."""

    task_id: TaskId
    kind: TaskKind
    model_id: ModelId
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampler: SamplerParams
    stop: StopRules
    verification: Verification = Verification.NONE
    max_byzantine: int = 0
    hold: bool = False
    """Nothing of the answer is shown before its tail audit has passed."""
    priority: int = 0
    """0 to 100, higher first."""
    deadline_s: float = 600.0
    """Seconds from acceptance until the task fails with `deadline_exceeded`."""
    result_ttl_s: int = 86_400
    owner: str = ""
    """Name of the API key that sent it."""
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def group(self) -> TaskGroup:
        return TaskGroup(self.model_id, self.verification, self.max_byzantine)


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What the last stage says of one generated token (engine.md section 8).

    `logit` is the raw logit of `token_id`, `other_id` and `other_logit` the best of the rest: bits that cannot be
    known without running the model. `logprobs` are natural logs after penalties and before temperature:
    of the token itself, then of the asked alternatives as (id, logprob), best first.
    """

    token_id: int
    logit: float
    other_id: int
    other_logit: float
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = field(default=())
