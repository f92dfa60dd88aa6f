"""How long a prompt and its answer may be."""

from typing import Final

from shared.domain.errors import ContextLengthExceeded, EmptyInput, InvalidToken
from shared.domain.task import TaskKind

DEFAULT_COMPLETION_TOKENS: Final = 16  # what clients of /v1/completions are used to


def tokens_to_generate(
    kind: TaskKind, *, asked: int | None, num_prompt: int, context_tokens: int, max_output_tokens: int
) -> int:
    """The answer's token limit. `max_output_tokens` caps the default only.

    Raises `ContextLengthExceeded` when prompt and answer do not fit into the context together.
    """
    room = context_tokens - num_prompt
    is_chat = kind is TaskKind.CHAT
    default = max(1, min(room, max_output_tokens)) if is_chat else DEFAULT_COMPLETION_TOKENS
    wanted = default if asked is None else asked
    if wanted > room:
        raise ContextLengthExceeded(
            f"the context holds {context_tokens} tokens, but the prompt has {num_prompt} and "
            f"{wanted} more are to be generated; shorten the prompt or lower max_tokens",
            param="messages" if is_chat else "prompt",
        )
    return wanted


def check_text_length(num_bytes: int, *, longest_piece_bytes: int, context_tokens: int, param: str) -> None:
    """Refuse, without tokenising, a text that cannot fit: it has at least num_bytes / longest_piece_bytes tokens."""
    if num_bytes > longest_piece_bytes * context_tokens:
        raise ContextLengthExceeded(
            f"the context holds {context_tokens} tokens; {num_bytes} bytes of text are more than that", param=param
        )


def check_token_ids(token_ids: tuple[int, ...], *, n_vocab: int, param: str) -> None:
    """Refuse an empty list and ids outside the vocabulary."""
    if not token_ids:
        raise EmptyInput("the prompt is empty", param=param)
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < n_vocab:
            raise InvalidToken(
                f"token id {token_id} is outside the vocabulary of {n_vocab} tokens", param=f"{param}.{position}"
            )
