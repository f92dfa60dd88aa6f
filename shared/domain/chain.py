"""Chain digests: one BLAKE2b link per row, so a digest covers every row before it (verification.md section 2).

The boundary below layer L carries hidden states; boundary 0 carries token ids, the boundary above the last layer sample
records, from the row of the prompt's last token on. Neither batching nor the place of the cut shows in a chain: the
same boundary has the same chain in every plan, lane and epoch.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from shared.domain import canonical
from shared.domain.task import SamplerParams, TokenRecord

DIGEST_BYTES = 32
_ROW = struct.Struct("<II")
_RECORD = struct.Struct("<IfIf")
_LOGPROB = struct.Struct("<Id")


def class_hash(numerics_class: str) -> str:
    """Names a numerics class, in hex."""
    return hashlib.blake2b(numerics_class.encode(), digest_size=DIGEST_BYTES, person=b"bfly/class/1").hexdigest()


def sampler_hash(params: SamplerParams) -> str:
    """Names the parameters of the token rule, in hex. Floats count by their exact value."""

    def exact(value: object) -> object:
        if isinstance(value, float):
            return value.hex()
        if isinstance(value, list | tuple):
            return [exact(item) for item in value]
        return "none" if value is None else value

    body = {name: exact(value) for name, value in asdict(params).items()}
    text = canonical.encode("sampler", body)
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES, person=b"bfly/sampler/1").hexdigest()


def chain_start(model_root: str, boundary: int, *, numerics_hash: str, sampler: str = "") -> bytes:
    """The value before the first row. `sampler`: its hash, at the boundary above the last layer only."""
    parts = model_root.encode() + b"\0" + struct.pack("<I", boundary) + numerics_hash.encode() + sampler.encode()
    return hashlib.blake2b(parts, digest_size=DIGEST_BYTES, person=b"bfly/chain/1").digest()


def id_bytes(token_id: int) -> bytes:
    return struct.pack("<I", token_id)


def record_bytes(record: TokenRecord) -> bytes:
    """16 bytes, then 12 for each log probability reported."""
    parts = [_RECORD.pack(record.token_id, record.logit, record.other_id, record.other_logit)]
    if record.logprob is not None:
        parts.append(_LOGPROB.pack(record.token_id, record.logprob))
    parts += [_LOGPROB.pack(token_id, logprob) for token_id, logprob in record.top_logprobs]
    return b"".join(parts)


class RowChain:
    """The chain of one boundary, and its values at the latest rows."""

    def __init__(self, start: bytes, *, row: int) -> None:
        """`start`: the value before row `row`."""
        self._values = [start]
        self._first = row

    @property
    def row(self) -> int:
        """The row that comes next."""
        return self._first + len(self._values) - 1

    def extend(self, rows: Iterable[bytes]) -> None:
        row, value = self.row, self._values[-1]
        for data in rows:
            link = hashlib.blake2b(value, digest_size=DIGEST_BYTES, person=b"bfly/row/1")
            link.update(_ROW.pack(row, len(data)))
            link.update(data)
            value = link.digest()
            self._values.append(value)
            row += 1

    def at(self, row: int) -> bytes:
        """The value before row `row`. Raises `KeyError` for a row not reached, or forgotten."""
        if not self._first <= row <= self.row:
            raise KeyError(row)
        return self._values[row - self._first]

    def forget_before(self, row: int) -> None:
        """Values before `row` will not be asked for again."""
        if row > self._first:
            kept = min(row, self.row)
            del self._values[: kept - self._first]
            self._first = kept


def record_chain(start: bytes, *, row: int, records: Sequence[TokenRecord]) -> RowChain:
    chain = RowChain(start, row=row)
    chain.extend(map(record_bytes, records))
    return chain
