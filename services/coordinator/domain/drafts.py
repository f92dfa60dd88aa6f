"""Whether drafted tokens may be believed to be what their session waits for."""

import math
from collections.abc import Sequence

from shared.domain.errors import ProtocolViolation
from shared.domain.task import TokenRecord

MAX_FLOAT32 = (2 - 2**-23) * 2.0**127


def new_records(
    records: Sequence[TokenRecord],
    *,
    first_index: int,
    known: Sequence[TokenRecord],
    limit: int,
    n_vocab: int,
    num_logprobs: int | None,
) -> Sequence[TokenRecord]:
    """Those of `records` that go beyond `known`. `first_index`: which generated token the first of them claims to be.

    A second delivery gives nothing new. Raises `ProtocolViolation` for a gap, for a second delivery that says something
    else than the first, for more than `limit` tokens, and for values that no token can have.
    """
    if first_index < 0 or first_index > len(known):
        raise ProtocolViolation(f"drafts begin at generated token {first_index}, expected {len(known)}")
    if first_index + len(records) > limit:
        raise ProtocolViolation(f"drafts reach beyond the limit of {limit} tokens")
    check_records(records, n_vocab=n_vocab, num_logprobs=num_logprobs)
    for index, record in enumerate(records[: len(known) - first_index], start=first_index):
        if record.token_id != known[index].token_id:
            raise ProtocolViolation(f"generated token {index} was drafted before, and as another token")
    return records[len(known) - first_index :]


def check_records(records: Sequence[TokenRecord], *, n_vocab: int, num_logprobs: int | None) -> None:
    """Raise `ProtocolViolation` for values that no token can have."""
    for record in records:
        _check(record, n_vocab=n_vocab, num_logprobs=num_logprobs)


def _check(record: TokenRecord, *, n_vocab: int, num_logprobs: int | None) -> None:
    ids = [record.token_id, record.other_id, *(token_id for token_id, _ in record.top_logprobs)]
    if not all(0 <= token_id < n_vocab for token_id in ids):
        raise ProtocolViolation(f"a draft holds a token id outside the vocabulary of {n_vocab}")
    numbers = [record.logit, record.other_logit, *(logprob for _, logprob in record.top_logprobs)]
    if record.logprob is not None:
        numbers.append(record.logprob)
    if not all(math.isfinite(number) for number in numbers):
        raise ProtocolViolation("a draft holds a logit that is not finite")
    if max(abs(record.logit), abs(record.other_logit)) > MAX_FLOAT32:
        raise ProtocolViolation("a draft holds a logit that is no float32")
    if (record.logprob is None) is not (num_logprobs is None):
        raise ProtocolViolation("a draft holds a logprob where none was asked, or none where one was")
    if len(record.top_logprobs) > (num_logprobs or 0):
        raise ProtocolViolation(
            f"a draft holds {len(record.top_logprobs)} alternatives, asked were {num_logprobs or 0}"
        )
