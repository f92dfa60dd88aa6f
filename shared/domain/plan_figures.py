"""What is said of a plan: what it will do, and how good it is."""

from dataclasses import dataclass

from shared.domain.ids import NodeId
from shared.domain.plan import LayerRange
from shared.domain.task import Verification


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the plan."""

    sequences: int = 1
    """Answers that run at once."""
    prompt_tokens: int = 128
    context_tokens: int = 1_024
    """Rows of each sequence, prompt and answer."""
    verification: Verification = Verification.AUDIT
    """How the lanes beside lane 0 work, if the plan has any."""
    window_tokens: int = 40
    """Rows that auditors replay together."""

    @property
    def answer_tokens(self) -> int:
        return max(1, self.context_tokens - self.prompt_tokens)


@dataclass(frozen=True, slots=True)
class SeatPrediction:
    lane: int
    stage: int
    node_id: NodeId
    layers: LayerRange
    decode_s: float
    """Of a step with one row."""
    prefill_s: float
    """Per token of a prompt; in audit lanes, of everything."""
    hop_s: float
    """A row's way to the next stage, or the token's from the last to the first; 0 with one stage."""
    weight_bytes: int
    kv_bytes: int
    """For the load's sequences and context."""
    scratch_bytes: int
    """Room for the rows of one call, about."""
    reserved_bytes: int
    """Weights, and KV cache for all the node's slots at their full length: what the plan counted with."""
    memory_bytes: int
    """Of the node."""
    is_measured: bool
    """Whether the node told of times; else they are assumed from its speed."""


@dataclass(frozen=True, slots=True)
class Prediction:
    first_token_s: float
    """From the question to the first token, of an audited answer to the first committed one; the median when several
    answers begin together, so with the prompts of the others."""
    token_s: float
    """Between tokens of one sequence alone, unverified."""
    tokens_per_s: float
    """Of all the load's sequences together once they have begun, if nothing was verified."""
    verified_tokens_per_s: float
    """The same as the plan's lanes verify them: equal to `tokens_per_s` where there is one lane."""
    answers_s: float
    """From the question to the end of the last answer."""
    audit_s_per_token: float
    """Work of the audit lanes together."""
    network_bytes_per_token: int
    """Of lane 0: hidden states from stage to stage, and the token's id back to the first."""
    is_measured: bool
    """Whether every node of it was tried."""
    is_timed: bool
    """Whether its times rest on ones of this model's stages."""
    seats: tuple[SeatPrediction, ...]


@dataclass(frozen=True, slots=True)
class StageQuality:
    stage: int
    node_id: NodeId
    step_share: float
    """Time of a decode step in this stage, as a share of the whole lane's."""
    memory_bytes: int
    """Weights and KV cache for all slots."""
    memory_share: float
    """Of what the node has; above 1 it does not fit."""


@dataclass(frozen=True, slots=True)
class PlanQuality:
    """Of lane 0."""

    balance: float
    """Mean time of a stage over the slowest one's: 1 is even, 1/stages is all work in one stage."""
    bottleneck_stage: int
    bottleneck_node: NodeId
    network_bytes_per_token: int
    """Hidden states from stage to stage and the token's id back to the first; 0 with one stage."""
    memory_headroom: float
    """Share of its memory that the fullest node has left; below 0 the plan does not fit."""
    token_s: float
    """Predicted time of one token around the ring."""
    pace_s: float
    """Predicted time of the slowest stage or transfer: the ring's best rate is one token in each."""
    latency_excess: float
    """Token time beyond what no plan on the given nodes can beat, as a share of that."""
    throughput_excess: float
    """The same for the pace."""
    stages: tuple[StageQuality, ...]
