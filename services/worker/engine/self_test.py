"""Finds out, at load, which runs of a stage give equal bits (engine.md section 7)."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.worker.engine.base import Ids, Mask, Rows
from shared.domain.errors import SelfTestFailed
from shared.domain.numerics import Profile

TEST_VERSION = 2
"""Another test may find another result: it is part of the name under which one is remembered."""
N_SLOTS = 16
N_ROWS = 96
_TAIL_START = 72  # the rows from here on are compared
_CHUNKS = (40, 40, 16)
_GROUPS = ((2, 5), (3, 5), (4, 5), (8, 5), (16, 4))
"""(sequences per call, calls): together the 24 rows of the tail. The sizes lie on both sides of the library's
changes of matrix kernel."""
_N_REPEATED = 8
_SCALE = 8.0  # hidden states are larger than 1; the exact size does not matter


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    profile: Profile
    small_rows: int | None
    """As in `StageInfo`."""
    digest: str


class SelfTestCache(ABC):
    """Remembers results, because a test costs about 400 rows."""

    @abstractmethod
    def get(self, key: str) -> SelfTestResult | None:
        """The result kept under `key`, or None."""

    @abstractmethod
    def put(self, key: str, result: SelfTestResult) -> None:
        """Keep `result`; failing to do so is no error."""


class FileSelfTestCache(SelfTestCache):
    """One small file per result in a folder, for instance beside the stage files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> SelfTestResult | None:
        try:
            fields = json.loads(self._file(key).read_bytes())
            return SelfTestResult(Profile(fields["profile"]), fields["small_rows"], fields["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent or damaged: the test runs again

    def put(self, key: str, result: SelfTestResult) -> None:
        temporary = self._file(key).with_suffix(f".{os.getpid()}.part")
        try:
            temporary.write_text(json.dumps(asdict(result)))
            temporary.replace(self._file(key))
        except OSError:
            temporary.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self._folder / f"{name}.selftest.json"


class Slots(Protocol):
    """What the test needs of a loaded stage, with the meaning of `Engine`; at least `N_SLOTS` empty slots of
    `N_ROWS` rows."""

    def forward(self, x: Ids | Rows, slots: Ids, positions: Ids, want: Mask | None = None) -> Rows: ...

    def truncate(self, slot: int, n_rows: int) -> None: ...

    def drop(self, slot: int) -> None: ...


def run_self_test(slots: Slots, x: Ids | Rows, *, is_last_stage: bool) -> SelfTestResult:
    """Compare the bits of the same rows, run in different company.

    x: `N_ROWS` rows of input, the same on every node (`fixed_ids`, `fixed_rows`).
    Raises `SelfTestFailed` when not even the same calls give the same bits twice.
    """
    test = _SelfTest(slots, x, is_last_stage=is_last_stage)
    one_pass = test.chunks(0, (N_ROWS,))
    slots.truncate(0, _TAIL_START)
    alone = test.rows_alone(0, N_ROWS - _TAIL_START)
    slots.truncate(0, _TAIL_START)
    if not _equal(test.rows_alone(0, _N_REPEATED), alone[:_N_REPEATED]):
        raise SelfTestFailed("the same rows gave other bits when run again")
    slots.drop(0)
    chunks_agree = _equal(test.chunks(1, _CHUNKS), one_pass)
    slots.truncate(1, _TAIL_START)
    small_rows = test.agreeing_group(1, alone)
    all_agree = small_rows == N_SLOTS and _equal(alone, one_pass)
    slots.truncate(1, _TAIL_START)
    if not all_agree and not _equal(test.tail_in_runs(1, small_rows), alone):
        small_rows = 1
    digest = hashlib.blake2b(one_pass.tobytes() + alone.tobytes(), digest_size=32).hexdigest()
    if not chunks_agree:
        return SelfTestResult(Profile.TOLERANT, small_rows, digest)
    if all_agree:
        return SelfTestResult(Profile.EXACT, None, digest)
    return SelfTestResult(Profile.DECODE_EXACT, small_rows, digest)


class _SelfTest:
    def __init__(self, slots: Slots, x: Ids | Rows, *, is_last_stage: bool) -> None:
        self._slots, self._x, self._is_last_stage = slots, x, is_last_stage

    def chunks(self, slot: int, sizes: tuple[int, ...]) -> Rows:
        """Run all rows through an empty slot in calls of these sizes; the results of the tail."""
        found, start = [], 0
        for size in sizes:
            positions = np.arange(start, start + size, dtype=np.int32)
            in_tail = positions >= _TAIL_START
            rows = self._slots.forward(
                self._x[start : start + size],
                np.full(size, slot, np.int32),
                positions,
                in_tail if self._is_last_stage else None,
            )
            found.append(rows if self._is_last_stage else rows[in_tail])
            start += size
        return np.concatenate(found)

    def rows_alone(self, slot: int, count: int) -> Rows:
        """Run the first `count` rows of the tail in calls of one row."""
        where = np.array([slot], np.int32)
        return np.concatenate(
            [
                self._slots.forward(self._x[position : position + 1], where, np.array([position], np.int32))
                for position in range(_TAIL_START, _TAIL_START + count)
            ]
        )

    def tail_in_runs(self, slot: int, size: int) -> Rows:
        """Run the tail in calls of so many consecutive rows."""
        found = []
        for start in range(_TAIL_START, N_ROWS, size):
            positions = np.arange(start, min(start + size, N_ROWS), dtype=np.int32)
            where = np.full(len(positions), slot, np.int32)
            found.append(self._slots.forward(self._x[positions], where, positions))
        return np.concatenate(found)

    def agreeing_group(self, slot: int, alone: Rows) -> int:
        """Run the tail beside more and more other sequences; the most rows per call that gave the bits of `alone`."""
        lengths = np.zeros(N_SLOTS, np.int32)
        lengths[slot] = _TAIL_START
        others = [other for other in range(N_SLOTS) if other != slot]
        agreeing = 1
        for size, n_calls in _GROUPS:
            members = np.array(sorted([slot, *others[: size - 1]]), np.int32)
            place = int(np.searchsorted(members, slot))
            for _ in range(n_calls):
                positions = lengths[members]
                rows = self._slots.forward(self._x[positions], members, positions)
                if not _equal(rows[place], alone[positions[place] - _TAIL_START]):
                    return agreeing
                lengths[members] += 1
            agreeing = size
        return agreeing


def fixed_ids(n_vocab: int) -> Ids:
    """Token ids that are the same on every node."""
    return (_fixed_words(N_ROWS) % np.uint64(n_vocab)).astype(np.int32)


def fixed_rows(n_embd: int) -> Rows:
    """Bell-shaped rows that are the same on every node: sums of twelve uniform numbers, no library function."""
    uniform = (_fixed_words(N_ROWS * n_embd * 12) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    bell = uniform.reshape(N_ROWS, n_embd, 12).sum(axis=2) - 6.0
    rows: Rows = (bell * _SCALE).astype(np.float32)
    return rows


def _fixed_words(count: int) -> npt.NDArray[np.uint64]:
    return np.random.Philox(key=0).random_raw(count)


def _equal(left: Rows, right: Rows) -> bool:
    return left.tobytes() == right.tobytes()
