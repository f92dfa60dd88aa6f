"""Where an epoch begins."""

import pytest

from services.coordinator.domain.resuming import WindowSizes, ids_chain, resume, sink_chain
from shared.domain.chain import RowChain, chain_start, class_hash, id_bytes, record_bytes, sampler_hash
from shared.domain.task import SamplerParams
from shared.domain.windows import Window
from tests.fakes.tasks import make_tokens

SIZES = WindowSizes(checkpoint_interval=10, window_checkpoints=4, max_windows_ahead=2)
ROOT = "ab" * 32


def test_a_fresh_session_begins_with_its_prompt() -> None:
    assert resume(SIZES, num_prompt=7, num_committed=0, last_window=None).window(0) == Window(0, 0, 7)


@pytest.mark.parametrize(("last_window", "index"), [(None, 2), (5, 6)])
def test_a_resumed_one_begins_at_the_row_of_the_last_committed_token(last_window: int | None, index: int) -> None:
    schedule = resume(SIZES, num_prompt=7, num_committed=11, last_window=last_window)
    assert schedule.window(index) == Window(index, 17, 27)


def test_one_committed_token_is_the_work_of_the_prompts_window() -> None:
    schedule = resume(SIZES, num_prompt=7, num_committed=1, last_window=None)
    assert schedule.window(1) == Window(1, 7, 17)


def test_the_chains_are_those_of_the_rows_so_far() -> None:
    sampler, records = SamplerParams(seed=3), make_tokens(10, 11)
    ids = RowChain(chain_start(ROOT, 0, numerics_hash=class_hash("c")), row=0)
    ids.extend(map(id_bytes, (1, 2, 10, 11)))
    assert ids_chain(ROOT, "c", (1, 2, 10, 11)) == ids.at(4).hex()
    sink = RowChain(chain_start(ROOT, 6, numerics_hash=class_hash("c"), sampler=sampler_hash(sampler)), row=1)
    sink.extend(map(record_bytes, records))
    assert sink_chain(ROOT, 6, "c", sampler, num_prompt=2, committed=records) == sink.at(3).hex()
