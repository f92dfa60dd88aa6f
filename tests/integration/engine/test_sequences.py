"""Equal bits whatever the company: what batching, rollback and moves rest on (exact profile)."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.engine.stages import Chain, ints, write_stages

PROMPTS = [[(31 * i + 7 * j * j + 5) % 512 for j in range(3 + i)] for i in range(16)]
LONG = [(17 * j * j + 3 * j) % 512 for j in range(640)]


def test_sixteen_sequences_in_a_batch_get_the_tokens_they_get_alone(tiny_chain: Chain) -> None:
    alone = []
    for prompt in PROMPTS:
        alone.append(tiny_chain.greedy(prompt, 0, 8))
        tiny_chain.drop(0)

    together = [[int(tiny_chain.prefill(prompt, slot)[0].argmax())] for slot, prompt in enumerate(PROMPTS)]
    for _ in range(7):
        logits = tiny_chain.step([found[-1] for found in together], range(16))
        for found, row in zip(together, logits, strict=True):
            found.append(int(row.argmax()))

    assert together == alone


def test_a_batch_of_the_demo_model_gives_the_bits_of_each_row_alone(demo_model: Path, stage_folder: Path) -> None:
    chain = Chain.open(write_stages(demo_model, (0, 10, 20, 30), stage_folder), n_slots=8)
    for slot in range(8):
        chain.prefill(PROMPTS[slot], slot)
    batch = chain.step([100 + slot for slot in range(8)], range(8))

    for slot in range(8):
        for _, stage in chain.stages:
            stage.truncate(slot, len(PROMPTS[slot]))
        assert chain.step([100 + slot], [slot]).tobytes() == batch[slot].tobytes()
    chain.close()


@pytest.mark.parametrize("chunk", [2, 7, 16, 33, 64])
def test_the_size_of_the_chunks_changes_no_bit(tiny_chain: Chain, chunk: int) -> None:
    expected = tiny_chain.prefill(LONG[:100], 0, chunk=100)

    assert tiny_chain.prefill(LONG[:100], 1, chunk=chunk).tobytes() == expected.tobytes()


def test_six_hundred_rows_of_context_give_the_same_bits_row_by_row(tiny_whole: Chain, tiny_chain: Chain) -> None:
    tiny_whole.prefill(LONG[:-20], 0)
    tiny_chain.prefill(LONG[:-20], 5, chunk=50)

    for token in LONG[-20:]:
        assert tiny_whole.step([token], [0]).tobytes() == tiny_chain.step([token], [5]).tobytes()
    assert tiny_whole.prefill(LONG, 1).tobytes() == tiny_whole.prefill(LONG, 2, chunk=500).tobytes()


def test_rows_come_back_in_the_order_given_whatever_the_slots(tiny_whole: Chain) -> None:
    slots = [9, 2, 14, 0, 5]
    alone = {}
    for slot in slots:
        alone[slot] = tiny_whole.step([slot + 1], [slot]).tobytes()
        tiny_whole.drop(slot)

    rows = tiny_whole.step([slot + 1 for slot in slots], slots)

    assert [row.tobytes() for row in rows] == [alone[slot] for slot in slots]


def test_hidden_rows_of_scattered_slots_come_back_in_the_order_given(tiny_chain: Chain) -> None:
    first = tiny_chain.stages[0][1]
    alone = {slot: first.forward(ints(slot + 1), ints(slot), ints(0)) for slot in (7, 1, 4)}
    for slot in alone:
        first.drop(slot)

    rows = first.forward(ints([8, 2, 5]), ints([7, 1, 4]), ints([0, 0, 0]))

    assert rows.tobytes() == b"".join(alone[slot].tobytes() for slot in (7, 1, 4))


def test_only_wanted_rows_come_back(tiny_whole: Chain) -> None:
    slots, ids, zeros = ints([3, 0, 2, 1]), ints([13, 10, 12, 11]), ints([0] * 4)
    every = tiny_whole.forward(ids, slots, zeros)
    for slot in range(4):
        tiny_whole.drop(slot)

    some = tiny_whole.forward(ids, slots, zeros, np.array([True, False, False, True]))
    none = tiny_whole.forward(ids, slots, ints([1] * 4), np.zeros(4, np.bool_))

    assert some.tobytes() == every[[0, 3]].tobytes()
    assert none.shape == (0, every.shape[1])


def test_the_number_of_threads_changes_no_bit(tiny_chain: Chain) -> None:
    expected = tiny_chain.prefill(LONG[:80], 0)
    for _, stage in tiny_chain.stages:
        stage.set_threads(2)

    assert tiny_chain.prefill(LONG[:80], 1).tobytes() == expected.tobytes()
    for _, stage in tiny_chain.stages:
        stage.set_threads(1)


def test_rows_cut_off_and_run_again_give_the_same_bits(tiny_chain: Chain) -> None:
    tiny_chain.prefill(LONG[:50], 0)
    expected = tiny_chain.prefill(LONG[50:60], 0)
    for _, stage in tiny_chain.stages:
        stage.truncate(0, 50)
    tiny_chain.prefill(PROMPTS[9], 0)  # another continuation, to be forgotten
    for _, stage in tiny_chain.stages:
        stage.truncate(0, 50)

    assert tiny_chain.prefill(LONG[50:60], 0).tobytes() == expected.tobytes()


def test_a_slot_used_again_remembers_nothing(tiny_chain: Chain) -> None:
    expected = tiny_chain.greedy(PROMPTS[5], 3, 5)
    tiny_chain.drop(3)
    tiny_chain.prefill(LONG[:200], 3)
    tiny_chain.drop(3)

    assert tiny_chain.greedy(PROMPTS[5], 3, 5) == expected
