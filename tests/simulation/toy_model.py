"""A model of hash functions: every stage's row depends on every row before, as with a KV cache, and costs nothing."""

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b

from shared.domain.chain import RowChain, chain_start, id_bytes, record_bytes
from shared.domain.task import TokenRecord

MODEL_ROOT = "ab" * 32
NUMERICS_HASH = "cd" * 32
SAMPLER_HASH = "ef" * 32
NUM_IDS = 12
END_ID = 0
PAYLOAD_BYTES = 8
"""What the next stage reads of a row; one byte more is there that makes no difference to it."""


class StageState:
    """One stage at work on one sequence: as a KV cache, nothing but the rows it was given."""

    def __init__(self, stage: int) -> None:
        self._value = bytes([stage])

    def run(self, row: bytes) -> bytes:
        """The row that follows from this one and all before."""
        self._value = _hash(self._value + row[:PAYLOAD_BYTES])
        return self.repeat()

    def repeat(self) -> bytes:
        """A row that nothing was computed for."""
        return _hash(self._value + b"out")[: PAYLOAD_BYTES + 1]


def record_of(row: bytes) -> TokenRecord:
    """The token rule."""
    return TokenRecord(row[0] % NUM_IDS, row[1] / 8, NUM_IDS + row[2] % 4, row[3] / 8)


def boundary_start(boundary: int, num_stages: int) -> bytes:
    """Every stage is one layer."""
    sampler = SAMPLER_HASH if boundary == num_stages else ""
    return chain_start(MODEL_ROOT, boundary, numerics_hash=NUMERICS_HASH, sampler=sampler)


class Truth:
    """The one right answer, and the one right chain of every boundary."""

    def __init__(self, num_stages: int, prompt_ids: Sequence[int], max_tokens: int) -> None:
        first_record = len(prompt_ids) - 1
        self._chains = [RowChain(boundary_start(each, num_stages), row=0) for each in range(num_stages)]
        self._chains.append(RowChain(boundary_start(num_stages, num_stages), row=first_record))
        self.records: list[TokenRecord] = []
        states = [StageState(stage) for stage in range(num_stages)]
        ids = list(prompt_ids)
        row = 0
        while row < len(ids):
            data = id_bytes(ids[row])
            for stage, state in enumerate(states):
                self._chains[stage].extend([data])
                data = state.run(data)
            if row >= first_record:
                self.records.append(record_of(data))
                self._chains[-1].extend([record_bytes(self.records[-1])])
                if len(self.records) < max_tokens and self.records[-1].token_id != END_ID:
                    ids.append(self.records[-1].token_id)
            row += 1

    def value(self, boundary: int, row: int) -> str:
        return self._chains[boundary].at(row).hex()


@cache
def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
