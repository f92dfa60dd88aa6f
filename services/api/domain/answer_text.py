"""From the tokens of an answer to what its client reads: text, counted tokens, logprobs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.api.domain.detokenizer import TextDecoder
from services.api.domain.stop_text import StopText
from shared.domain.task import TokenRecord


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """A token of an answer."""

    token_id: int
    piece: bytes
    """Exactly the token's bytes, often a part of a character."""
    text_offset: int
    """Characters of the answer before this token."""
    logprob: float | None
    top: tuple[tuple[bytes, float], ...]
    """The asked alternatives, best first: (bytes, natural logarithm of the probability)."""


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """What a few tokens add to an answer. `text` lags behind `tokens` where a character or a stop string may go on."""

    text: str
    tokens: tuple[AnswerToken, ...]


class AnswerText:
    """One per answer: takes its tokens in order."""

    def __init__(
        self,
        *,
        pieces: Sequence[bytes],
        end_ids: Iterable[int],
        stops: Sequence[str],
        drop_leading_space: bool = False,
    ) -> None:
        """`pieces`: the bytes of every token of the vocabulary, by id."""
        self._pieces = pieces
        self._end_ids = frozenset(end_ids)
        self._decoder = TextDecoder(drop_leading_space=drop_leading_space)
        self._stop_text = StopText(stops)
        self._num_characters = 0
        self._ended = False
        self.num_tokens = 0
        """Tokens that belong to the answer: not its end token, but the one that completed a stop string."""

    def feed(self, records: Iterable[TokenRecord]) -> AnswerPart:
        """Tokens after the end of the answer are left out."""
        text: list[str] = []
        tokens: list[AnswerToken] = []
        for record in records:
            self._ended = self._ended or self._stop_text.stopped or record.token_id in self._end_ids
            if self._ended:
                break
            tokens.append(self._token(record))
            characters = self._decoder.feed(tokens[-1].piece)
            self._num_characters += len(characters)
            text.append(self._stop_text.feed(characters))
        self.num_tokens += len(tokens)
        return AnswerPart("".join(text), tuple(tokens))

    def finish(self) -> AnswerPart:
        """What was held back; to be called once, after the last token."""
        return AnswerPart(self._stop_text.feed(self._decoder.finish()) + self._stop_text.finish(), ())

    def _token(self, record: TokenRecord) -> AnswerToken:
        return AnswerToken(
            token_id=record.token_id,
            piece=self._pieces[record.token_id],
            text_offset=self._num_characters,
            logprob=record.logprob,
            top=tuple((self._pieces[token_id], logprob) for token_id, logprob in record.top_logprobs),
        )
