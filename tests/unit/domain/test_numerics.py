import pytest

from shared.domain.numerics import ANY_ROWS, TILE_ROWS, Profile, StageFacts, call_rows, fits, row_class_of, weakest

EXACT = StageFacts("class", "aa", Profile.EXACT, None)
THREE = StageFacts("class", "bb", Profile.DECODE_EXACT, 3)
ONE = StageFacts("class", "cc", Profile.DECODE_EXACT, 1)
NOTHING = StageFacts("class", "dd", Profile.TOLERANT, 16)


def calls(num_rows: int, num_prompt: int, row_class: int) -> list[int]:
    sizes: list[int] = []
    while (first := sum(sizes)) < num_rows:
        sizes.append(call_rows(first, num_known=num_rows, num_prompt=num_prompt, row_class=row_class))
    return sizes


def test_the_smallest_class_of_all_stages_counts() -> None:
    assert row_class_of([EXACT, EXACT]) == ANY_ROWS
    assert row_class_of([EXACT, THREE, ONE]) == 1
    assert row_class_of([THREE, NOTHING]) == 3


def test_the_weakest_profile_counts() -> None:
    assert weakest([Profile.EXACT, Profile.DECODE_EXACT]) is Profile.DECODE_EXACT
    assert weakest([Profile.TOLERANT, Profile.EXACT]) is Profile.TOLERANT
    assert weakest([]) is Profile.EXACT


@pytest.mark.parametrize(
    ("facts", "row_class", "does_fit"),
    [
        (EXACT, ANY_ROWS, True),
        (EXACT, 1, True),
        (THREE, ANY_ROWS, False),
        (THREE, 3, True),
        (THREE, 4, False),
        (ONE, 3, False),
    ],
)
def test_a_stage_keeps_its_promise_in_calls_that_are_small_enough(
    facts: StageFacts, row_class: int, does_fit: bool
) -> None:
    assert fits(facts, row_class) is does_fit


def test_a_prompt_goes_in_tiles_from_row_0_and_what_follows_in_small_calls() -> None:
    assert calls(TILE_ROWS + 10, TILE_ROWS + 5, 3) == [TILE_ROWS, 5, 3, 2]
    assert calls(2 * TILE_ROWS + 1, 2 * TILE_ROWS, 1) == [TILE_ROWS, TILE_ROWS, 1]


def test_calls_of_any_size_take_no_notice_of_the_prompts_end() -> None:
    assert calls(TILE_ROWS + 10, 5, ANY_ROWS) == [TILE_ROWS, 10]
