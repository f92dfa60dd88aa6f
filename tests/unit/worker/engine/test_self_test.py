import numpy as np
import pytest

from services.worker.engine.self_test import N_ROWS, fixed_ids, fixed_rows, run_self_test
from shared.domain.errors import SelfTestFailed
from shared.domain.numerics import Profile
from tests.fakes.slots import HashSlots

IDS = fixed_ids(1000)


@pytest.mark.parametrize("is_last_stage", [False, True])
def test_rows_that_depend_on_their_prefix_only_are_exact(is_last_stage: bool) -> None:
    result = run_self_test(HashSlots(), IDS, is_last_stage=is_last_stage)

    assert (result.profile, result.small_rows) == (Profile.EXACT, None)


@pytest.mark.parametrize(("limit", "small_rows"), [(2, 1), (3, 2), (4, 3), (5, 4), (9, 8), (16, 8)])
def test_rows_that_change_in_larger_calls_are_decode_exact_up_to_the_last_size_that_agrees(
    limit: int, small_rows: int
) -> None:
    slots = HashSlots(lambda rows_in_call, _: int(rows_in_call >= limit))

    result = run_self_test(slots, IDS, is_last_stage=False)

    assert (result.profile, result.small_rows) == (Profile.DECODE_EXACT, small_rows)


def test_prompts_that_depend_on_their_chunks_are_tolerant() -> None:
    slots = HashSlots(lambda rows_in_call, _: rows_in_call // 50)

    assert run_self_test(slots, IDS, is_last_stage=False).profile is Profile.TOLERANT


def test_rows_that_never_repeat_are_refused() -> None:
    with pytest.raises(SelfTestFailed):
        run_self_test(HashSlots(lambda _, call: call), IDS, is_last_stage=False)


def test_the_digest_is_that_of_the_results() -> None:
    same, again, other = (
        run_self_test(HashSlots(lambda *_, what=what: what), IDS, is_last_stage=False).digest for what in (1, 1, 2)
    )

    assert same == again != other


def test_the_input_is_the_same_on_every_node_and_like_real_input() -> None:
    rows = fixed_rows(64)

    assert IDS[:4].tolist() == [259, 458, 49, 556]
    assert (IDS.dtype == np.int32, IDS.shape, rows.dtype == np.float32, rows.shape) == (
        True,
        (N_ROWS,),
        True,
        (N_ROWS, 64),
    )
    assert rows.std() == pytest.approx(8.0, rel=0.05)
    assert rows.flags.c_contiguous
