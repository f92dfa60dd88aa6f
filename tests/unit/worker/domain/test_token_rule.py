import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.token_rule import choose_token, det_exp, det_log, gumbel, noise_words
from shared.domain.sampler import check_sampler
from shared.domain.task import SamplerParams

N_VOCAB = 50
GREEDY = SamplerParams(temperature=0.0)

Logits = np.ndarray[Any, np.dtype[np.float32]]

logit_rows = st.lists(
    st.floats(-30, 30, width=32, allow_nan=False, allow_subnormal=False), min_size=N_VOCAB, max_size=N_VOCAB
).map(lambda values: np.array(values, np.float32))
samplers = st.builds(
    SamplerParams,
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 2.0)),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.5, 2),
    logit_bias=st.lists(st.tuples(st.integers(0, N_VOCAB - 1), st.floats(-100, 100)), max_size=3).map(tuple),
    seed=st.integers(-(2**63), 2**64 - 1),
    logprobs=st.one_of(st.none(), st.integers(0, 5)),
)
histories = st.lists(st.integers(0, N_VOCAB - 1), max_size=20)


def some_logits(seed: int = 0, n_vocab: int = N_VOCAB) -> Logits:
    return np.random.default_rng(seed).normal(0.0, 3.0, n_vocab).astype(np.float32)


def drawn(logits: Logits, params: SamplerParams, count: int = 300) -> list[int]:
    return [choose_token(logits, position=position, params=params).token_id for position in range(count)]


@given(logits=logit_rows, params=samplers, prompt=histories, generated=histories, position=st.integers(0, 10_000))
def test_equal_input_gives_an_equal_record_and_leaves_the_logits_alone(
    logits: Logits, params: SamplerParams, prompt: list[int], generated: list[int], position: int
) -> None:
    before = logits.copy()

    first, second = (
        choose_token(logits, position=position, params=params, prompt_ids=prompt, generated_ids=generated)
        for _ in range(2)
    )

    assert first == second
    assert 0 <= first.token_id < N_VOCAB
    assert first.other_id != first.token_id
    assert np.array_equal(logits, before)


@given(logits=logit_rows, params=samplers)
def test_the_record_has_the_raw_logits_of_the_token_and_of_the_best_other(
    logits: Logits, params: SamplerParams
) -> None:
    record = choose_token(logits, position=3, params=params)

    others = np.delete(logits, record.token_id)
    assert record.logit == logits[record.token_id]
    assert record.other_logit == others.max() == logits[record.other_id]
    assert record.other_id == next(
        i for i in range(N_VOCAB) if i != record.token_id and logits[i] == record.other_logit
    )


@given(logits=logit_rows)
def test_greedy_takes_the_largest_logit_and_the_lower_id_on_a_tie(logits: Logits) -> None:
    logits[[7, 31]] = 40.0

    record = choose_token(logits, position=0, params=GREEDY)

    assert (record.token_id, record.other_id) == (7, 31)


@given(logits=logit_rows, seed=st.integers(0, 2**32), position=st.integers(0, 1000))
def test_top_k_of_one_is_greedy_whatever_the_seed(logits: Logits, seed: int, position: int) -> None:
    params = SamplerParams(temperature=1.5, top_k=1, seed=seed)

    found = choose_token(logits, position=position, params=params)

    assert found == choose_token(logits, position=position, params=GREEDY)


def test_a_tiny_temperature_is_greedy() -> None:
    params = SamplerParams(temperature=5e-324, seed=5)

    assert set(drawn(some_logits(), params, 20)) == {int(some_logits().argmax())}


def test_a_seed_repeats_and_another_seed_differs() -> None:
    first, again, other = (drawn(some_logits(), SamplerParams(seed=seed)) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_a_negative_seed_is_its_64_bits() -> None:
    assert drawn(some_logits(), SamplerParams(seed=-1), 50) == drawn(some_logits(), SamplerParams(seed=2**64 - 1), 50)


def test_the_noise_of_an_id_does_not_depend_on_the_other_candidates() -> None:
    few, many = np.array([3, 17]), np.arange(40)

    assert noise_words(9, 100, few).tolist() == noise_words(9, 100, many)[few].tolist()


@given(
    seed=st.integers(0, 2**32), position=st.integers(0, 5000), spread=st.floats(0.1, 20), n_vocab=st.integers(2, 3000)
)
def test_the_drawn_id_has_the_largest_value_plus_noise(seed: int, position: int, spread: float, n_vocab: int) -> None:
    logits = (some_logits(seed, n_vocab) * spread).astype(np.float32)
    values = logits.astype(np.float64) - float(logits.max())
    ids = np.flatnonzero(values >= -16.0)
    scores = values[ids] + gumbel(noise_words(seed, position, ids))

    found = choose_token(logits, position=position, params=SamplerParams(seed=seed))

    assert found.token_id == ids[scores.argmax()]


def test_drawn_tokens_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)

    counts = np.bincount(drawn(logits, SamplerParams(seed=4), 4000), minlength=4) / 4000

    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 0.03


def test_these_draws_never_change() -> None:
    """They are part of the rule: a change needs a new RULE_VERSION."""
    params = SamplerParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=42)
    wide = SamplerParams(temperature=1.5, seed=2**63)

    def draws(params: SamplerParams) -> list[int]:
        rows = [((np.arange(N_VOCAB) * 37 + 11 * i) % N_VOCAB / 8).astype(np.float32) for i in range(10)]
        return [
            choose_token(row, position=i, params=params, prompt_ids=(1, 2), generated_ids=(3,)).token_id
            for i, row in enumerate(rows)
        ]

    assert draws(params) == [27, 24, 21, 15, 19, 16, 40, 18, 46, 16]
    assert draws(wide) == [47, 49, 33, 20, 8, 12, 14, 10, 1, 0]


def test_top_k_keeps_the_k_largest() -> None:
    logits = some_logits()
    kept = set(np.argsort(-logits)[:3].tolist())

    assert set(drawn(logits, SamplerParams(temperature=2.0, top_k=3))) == kept


def test_top_p_keeps_the_fewest_whose_weight_reaches_p() -> None:
    logits = np.log(np.array([0.05, 0.5, 0.3, 0.15])).astype(np.float32)

    assert set(drawn(logits, SamplerParams(top_p=0.75))) == {1, 2}
    assert set(drawn(logits, SamplerParams(top_p=0.85))) == {1, 2, 3}


def test_min_p_keeps_what_weighs_that_part_of_the_best() -> None:
    logits = np.log(np.array([0.05, 0.5, 0.3, 0.15])).astype(np.float32)

    assert set(drawn(logits, SamplerParams(min_p=0.55))) == {1, 2}


def test_filters_break_ties_towards_the_lower_id() -> None:
    logits = np.zeros(N_VOCAB, np.float32)

    assert set(drawn(logits, SamplerParams(top_k=2))) == {0, 1}


def test_a_bias_can_force_and_forbid_a_token() -> None:
    logits = some_logits()
    best = int(logits.argmax())

    forced = choose_token(logits, position=0, params=SamplerParams(logit_bias=((11, 100.0),)))
    without_best = drawn(logits, SamplerParams(logit_bias=((best, -100.0),)))

    assert forced.token_id == 11
    assert forced.logit == logits[11]
    assert best not in without_best


@pytest.mark.parametrize(
    ("params", "prompt", "generated", "expected"),
    [
        (SamplerParams(temperature=0, repetition_penalty=2.0), (0,), (), 1),
        (SamplerParams(temperature=0, repetition_penalty=2.0), (), (0,), 1),
        (SamplerParams(temperature=0, presence_penalty=1.5), (0,), (), 0),
        (SamplerParams(temperature=0, presence_penalty=1.5), (), (0, 0), 1),
        (SamplerParams(temperature=0, frequency_penalty=0.6), (), (0,), 0),
        (SamplerParams(temperature=0, frequency_penalty=0.6), (), (0, 0), 1),
    ],
)
def test_penalties_count_what_they_say(
    params: SamplerParams, prompt: tuple[int, ...], generated: tuple[int, ...], expected: int
) -> None:
    logits = np.array([3.0, 2.0, -5.0], np.float32)

    record = choose_token(logits, position=0, params=params, prompt_ids=prompt, generated_ids=generated)

    assert record.token_id == expected


def test_a_repetition_penalty_lowers_negative_logits_too() -> None:
    logits = np.array([-1.0, -1.5, -9.0], np.float32)
    params = SamplerParams(temperature=0, repetition_penalty=2.0)

    assert choose_token(logits, position=0, params=params, generated_ids=(0,)).token_id == 1


@given(logits=logit_rows, count=st.integers(0, 8))
def test_logprobs_are_those_of_the_softmax_best_first(logits: Logits, count: int) -> None:
    record = choose_token(logits, position=5, params=SamplerParams(temperature=0.7, logprobs=count))

    wide = logits.astype(np.float64)
    expected = wide - wide.max() - math.log(np.exp(wide - wide.max()).sum())
    assert record.logprob == pytest.approx(expected[record.token_id], abs=1e-12)
    assert [i for i, _ in record.top_logprobs] == sorted(range(N_VOCAB), key=lambda i: (-logits[i], i))[:count]
    assert [p for _, p in record.top_logprobs] == pytest.approx(sorted(expected, reverse=True)[:count], abs=1e-12)


def test_logprobs_are_left_out_unless_asked_for() -> None:
    record = choose_token(some_logits(), position=0, params=SamplerParams())

    assert (record.logprob, record.top_logprobs) == (None, ())


@given(st.floats(1e-300, 1e300))
def test_the_logarithm_is_that_of_the_library_but_for_rounding(x: float) -> None:
    assert det_log(np.array([x]))[0] == pytest.approx(math.log(x), rel=1e-14, abs=1e-15)


@given(st.floats(-700, 700))
def test_the_exponential_is_that_of_the_library_but_for_rounding(x: float) -> None:
    assert det_exp(np.array([x]))[0] == pytest.approx(math.exp(x), rel=1e-14)


@given(params=samplers)
def test_all_parameters_played_here_may_be_asked_for(params: SamplerParams) -> None:
    check_sampler(params, N_VOCAB)
