"""The token rule: given the logits of a row, exactly one token id is right (engine.md section 8).

Part of the last stage's function, so every lane and every auditor must repeat it to the bit. What decides uses only
+ - * /, comparison, frexp and ldexp on float64: the last bits of a library's log and exp differ between processors.
The random numbers depend on (seed, position, id) alone: replay, rollback and resume need no state. Any change here that
could change a token raises `shared.domain.sampler.RULE_VERSION`.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.domain.task import SamplerParams, TokenRecord

_CUTOFF = 16.0  # ids this far below the best weigh less than 1.2e-7 of it, and are never drawn
_LIKELY = 3.0  # any value decides equally; this one leaves few ids to look at
_ROUNDING_MARGIN = 1e-6  # far above the error of `gumbel`
_LOGPROB_CUTOFF = 40.0  # beyond this an id adds less than 1e-17 to the sum of weights

_LN2 = 0.6931471805599453
_LN2_HIGH = 0.693147180369123816490  # ln 2 in two parts, the first with trailing zeros: k * _LN2_HIGH is exact
_LN2_LOW = 1.90821492927058770002e-10
_LOG2_E = 1.4426950408889634
_SQRT_HALF = 0.7071067811865476
_EXP_TERMS = 16
_LARGEST_BELOW_ONE = 1.0 - 2.0**-53

Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
Logits = npt.NDArray[np.float32]
Indexes = npt.NDArray[np.intp]


def choose_token(
    logits: Logits,
    *,
    position: int,
    params: SamplerParams,
    prompt_ids: Sequence[int] = (),
    generated_ids: Sequence[int] = (),
) -> TokenRecord:
    """The token that follows row `position`, with what is recorded of it.

    logits: float32 [n_vocab], finite, n_vocab >= 2; not changed. `params` passed `check_sampler`.
    """
    is_plain = not (params.logit_bias or _has_penalties(params))
    if params.temperature == 0.0 and is_plain and params.logprobs is None:
        return _record(logits, int(logits.argmax()))
    values = logits.astype(np.float64)
    if not is_plain:
        _adjust(values, params, prompt_ids, generated_ids)
    token_id = int(values.argmax()) if params.temperature == 0.0 else _draw(values, position, params)
    if params.logprobs is None:
        return _record(logits, token_id)
    logprobs = values - values.max()
    logprobs -= _log_of_sum(logprobs)
    best = _best_first(logprobs, params.logprobs)
    return _record(logits, token_id, float(logprobs[token_id]), tuple((int(i), float(logprobs[i])) for i in best))


def noise_words(seed: int, position: int, ids: Indexes) -> Words:
    """The random words of the ascending `ids` at a position.

    Word i of Philox4x64-10 belongs to id i; the counter starts at (0, position, 0, 0) and is raised before the
    first block, as numpy does.
    """
    key = int.from_bytes(hashlib.blake2b((seed % 2**64).to_bytes(8, "little"), digest_size=16).digest(), "little")
    return np.random.Philox(key=key, counter=position << 64).random_raw(int(ids[-1]) + 1)[ids]


def gumbel(words: Words) -> Doubles:
    """Gumbel noise from random words: the largest of value + noise is a draw by the softmax of the values."""
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -det_log(-det_log(np.minimum(uniform, _LARGEST_BELOW_ONE)))


def det_log(x: Doubles) -> Doubles:
    """Natural logarithm of positive numbers, equal on every processor: 2 artanh((m-1)/(m+1)) + e ln 2."""
    mantissa, exponent = np.frexp(x)
    is_small = mantissa < _SQRT_HALF
    mantissa = np.where(is_small, mantissa * 2.0, mantissa)
    exponent = np.where(is_small, exponent - 1, exponent)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    series = np.full_like(z, 1.0 / 23.0)
    for k in range(21, 0, -2):
        series = series * square + 1.0 / k
    return exponent * _LN2 + 2.0 * z * series


def det_exp(x: Doubles) -> Doubles:
    """Exponential of numbers in [-700, 700], equal on every processor: 2^k times the series of the rest."""
    k = np.rint(x * _LOG2_E)
    rest = (x - k * _LN2_HIGH) - k * _LN2_LOW
    series = np.ones_like(rest)
    for n in range(_EXP_TERMS, 0, -1):
        series = series * (rest / n) + 1.0
    return np.ldexp(series, k.astype(np.int32))


def _has_penalties(params: SamplerParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _adjust(values: Doubles, params: SamplerParams, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> None:
    """Apply biases, then penalties, in place. Repetition counts the prompt too, the others what was generated."""
    for token_id, bias in params.logit_bias:
        values[token_id] += bias
    if not _has_penalties(params):
        return
    generated, counts = np.unique(np.asarray(generated_ids, np.intp), return_counts=True)
    if params.repetition_penalty != 1.0:
        seen = np.union1d(generated, np.asarray(prompt_ids, np.intp))
        penalty = params.repetition_penalty
        values[seen] = np.where(values[seen] > 0.0, values[seen] / penalty, values[seen] * penalty)
    values[generated] -= params.presence_penalty + params.frequency_penalty * counts


def _draw(values: Doubles, position: int, params: SamplerParams) -> int:
    scaled = values - values.max()
    with np.errstate(over="ignore"):  # a tiny temperature sends the rest to minus infinity, which is right
        scaled /= params.temperature
    ids = np.flatnonzero(scaled >= -_CUTOFF)
    ids = _filter(ids, scaled[ids], params)
    return int(ids[_winner(scaled[ids], noise_words(params.seed, position, ids))]) if len(ids) > 1 else int(ids[0])


def _winner(scaled: Doubles, words: Words) -> int:
    """Index of the largest of value + noise, ties to the lower index; the largest value is 0.

    Noise is dear and there are thousands of candidates, so only those get it that could still win: with the largest
    noise of all they reach what a likely one has.
    """
    likely = scaled >= -_LIKELY
    reached = (scaled[likely] + gumbel(words[likely])).max()
    ceiling = gumbel(words.max(keepdims=True))[0]
    possible = np.flatnonzero(scaled >= reached - ceiling - _ROUNDING_MARGIN)
    return int(possible[(scaled[possible] + gumbel(words[possible])).argmax()])


def _filter(ids: Indexes, scaled: Doubles, params: SamplerParams) -> Indexes:
    """What top_k, top_p and min_p leave of the ascending ids. `scaled`: their values, the largest is 0."""
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        return ids
    order = _best_first(scaled, params.top_k or len(ids))
    weights = det_exp(scaled[order])
    if params.top_p < 1.0:
        sums = np.cumsum(weights)  # in this order, unlike sum()
        n_kept = int(np.searchsorted(sums, params.top_p * sums[-1])) + 1
        order, weights = order[:n_kept], weights[:n_kept]
    return np.sort(ids[order[weights >= params.min_p]])  # the best id weighs 1


def _log_of_sum(relative: Doubles) -> float:
    """ln of the sum of exp; `relative`: values whose largest is 0."""
    weights = det_exp(relative[relative >= -_LOGPROB_CUTOFF])
    return float(det_log(np.cumsum(weights)[-1:])[0])


def _best_first(values: Doubles, count: int) -> Indexes:
    """Indexes of the `count` largest, ties to the lower index."""
    if count == 0:
        return np.empty(0, np.intp)
    count = min(count, len(values))
    ids = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return ids[np.argsort(-values[ids], kind="stable")][:count]


def _record(
    logits: Logits,
    token_id: int,
    logprob: float | None = None,
    top_logprobs: tuple[tuple[int, float], ...] = (),
) -> TokenRecord:
    other_id = _best_other(logits, token_id)
    return TokenRecord(token_id, float(logits[token_id]), other_id, float(logits[other_id]), logprob, top_logprobs)


def _best_other(logits: Logits, token_id: int) -> int:
    """The id of the largest raw logit beside `token_id`, ties to the lower id."""
    before, after = logits[:token_id], logits[token_id + 1 :]
    if len(before) == 0:
        return token_id + 1 + int(after.argmax())
    low = int(before.argmax())
    if len(after) == 0:
        return low
    high = int(after.argmax())
    return low if before[low] >= after[high] else token_id + 1 + high
