"""Where an epoch begins: its windows, and the chains of what was committed before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.domain.chain import RowChain, chain_start, class_hash, id_bytes, record_chain, sampler_hash
from shared.domain.task import SamplerParams, TokenRecord
from shared.domain.windows import WindowSchedule


@dataclass(frozen=True, slots=True)
class WindowSizes:
    checkpoint_interval: int
    """Rows."""
    window_checkpoints: int
    max_windows_ahead: int
    """Windows that lane 0 of a verified session may be ahead of the last commit."""


def resume(sizes: WindowSizes, *, num_prompt: int, num_committed: int, last_window: int | None) -> WindowSchedule:
    """The windows after `num_committed` tokens. `last_window`: the last one committed; None: not known."""
    fresh = WindowSchedule(num_prompt, 0, 0, sizes.checkpoint_interval, sizes.window_checkpoints)
    if num_committed == 0:
        return fresh
    first_row = num_prompt + num_committed - 1
    last = fresh.window_of(first_row - 1).index if last_window is None else last_window
    return WindowSchedule(num_prompt, last + 1, first_row, sizes.checkpoint_interval, sizes.window_checkpoints)


def ids_chain(model_root: str, numerics_class: str, ids: Iterable[int]) -> str:
    """Chain of boundary 0 after these ids, in hex."""
    chain = RowChain(chain_start(model_root, 0, numerics_hash=class_hash(numerics_class)), row=0)
    chain.extend(map(id_bytes, ids))
    return chain.at(chain.row).hex()


def sink_chain(
    model_root: str,
    num_layers: int,
    numerics_class: str,
    sampler: SamplerParams,
    *,
    num_prompt: int,
    committed: Sequence[TokenRecord],
) -> str:
    """Chain of the sample records after those committed, in hex."""
    start = chain_start(model_root, num_layers, numerics_hash=class_hash(numerics_class), sampler=sampler_hash(sampler))
    chain = record_chain(start, row=num_prompt - 1, records=committed)
    return chain.at(chain.row).hex()
