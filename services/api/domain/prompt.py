"""From a client's input to the token ids of the prompt, so that no client can write control tokens.

Only the template's own text may hold control tokens. A prompt is tokenised in one go, as every other program does it,
when that provably parses no control token out of the messages. Else it is put together from pieces: each message
alone, without parsing control tokens, between the pieces of the template.
"""

import re
from collections.abc import Sequence
from typing import Protocol

from services.api.domain.chat_template import ChatMessage, ChatTemplate


class Tokenizer(Protocol):
    bos_id: int | None
    adds_bos: bool

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def is_control(self, token_id: int) -> bool:
        """Whether this token stands for no text."""


def completion_prompt_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids of plain text, with the BOS token in front where the model wants one; none for an empty text."""
    return tuple(tokenizer.tokenize(text, add_special=True, parse_special=False)) if text else ()


def chat_prompt_ids(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[ChatMessage], *, nonce: str
) -> tuple[int, ...]:
    """The ids of the rendered template. `nonce`: letters and digits no client can guess. Raises `TemplateError`."""
    pieced = _pieced(tokenizer, template, messages, nonce)
    if not _all_inert(tokenizer, messages):
        return pieced
    plain = _begun(tokenizer, template.render(messages))
    return plain if _controls(tokenizer, plain) == _controls(tokenizer, pieced) else pieced


def _pieced(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[ChatMessage], nonce: str
) -> tuple[int, ...]:
    marked = [ChatMessage(message.role, f"{nonce}x{index}x") for index, message in enumerate(messages)]
    pieces = re.split(rf"{nonce}x(\d+)x", template.render(marked))
    ids = list(_begun(tokenizer, pieces[0]))
    for index, text in zip(pieces[1::2], pieces[2::2], strict=True):
        ids += tokenizer.tokenize(messages[int(index)].content, add_special=False, parse_special=False)
        ids += tokenizer.tokenize(text, add_special=False, parse_special=True)
    return tuple(ids)


def _begun(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids of template text at the beginning of a prompt. Many templates write the BOS token themselves."""
    ids = tokenizer.tokenize(text, add_special=False, parse_special=True)
    if tokenizer.adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return tuple(ids)


def _all_inert(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> bool:
    """Whether parsing control tokens finds none in any message."""
    return not any(
        tokenizer.is_control(token_id)
        for message in messages
        for token_id in tokenizer.tokenize(message.content, add_special=False, parse_special=True)
    )


def _controls(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [token_id for token_id in ids if tokenizer.is_control(token_id)]
