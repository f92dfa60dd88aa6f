"""What the token rule can be asked for. The rule itself is the worker's (services/worker/domain/token_rule.py)."""

from collections.abc import Iterator

from shared.domain.errors import InvalidInput, UnsupportedParameter
from shared.domain.task import SamplerParams

RULE_VERSION = 1
"""Part of the numerics class: rises with any change of the rule that could change a token."""

MAX_LOGPROBS = 20


def check_sampler(params: SamplerParams, n_vocab: int) -> None:
    """Raise `InvalidInput`, naming the field, unless `choose_token` can follow `params` for this vocabulary."""
    for name, rule, holds in _sampler_rules(params):
        if not holds:
            raise InvalidInput(f"{name} must be {rule}", param=name)
    for token_id, bias in params.logit_bias:
        if not 0 <= token_id < n_vocab:
            raise InvalidInput(f"token id {token_id} is outside [0, {n_vocab})", param="logit_bias")
        if not abs(bias) <= 100.0:
            raise InvalidInput("a bias must be between -100 and 100", param="logit_bias")
    if params.logprobs is not None and params.logprobs > MAX_LOGPROBS:
        raise UnsupportedParameter(f"at most {MAX_LOGPROBS} alternatives are reported", param="top_logprobs")


def _sampler_rules(params: SamplerParams) -> Iterator[tuple[str, str, bool]]:
    """Comparisons are written so that NaN fails them."""
    yield "temperature", "between 0 and 2", 0.0 <= params.temperature <= 2.0
    yield "top_k", "0 (off) or more", params.top_k >= 0
    yield "top_p", "above 0 and at most 1", 0.0 < params.top_p <= 1.0
    yield "min_p", "between 0 and 1", 0.0 <= params.min_p <= 1.0
    yield "presence_penalty", "between -2 and 2", -2.0 <= params.presence_penalty <= 2.0
    yield "frequency_penalty", "between -2 and 2", -2.0 <= params.frequency_penalty <= 2.0
    yield "repetition_penalty", "above 0 and at most 10", 0.0 < params.repetition_penalty <= 10.0
    yield "seed", "a 64-bit integer", -(2**63) <= params.seed < 2**64
    yield "logprobs", "0 or more", params.logprobs is None or params.logprobs >= 0
