"""A model's vocabulary without its weights: text to token ids and back, ends, chat template."""

import ctypes as C
from functools import cached_property
from pathlib import Path

from shared.domain.errors import BadModelFile, InvalidToken
from shared.llama.library import Library

_NO_TOKEN = -1


class Vocabulary:
    """Loaded from a model file, or from a file with the same key-values and no tensors at all.

    Read-only, but not thread-safe across `close`: use it from one executor thread. Tokenising long text takes
    up to a second for large vocabularies, so never on the event loop.
    """

    def __init__(self, library: Library, path: Path) -> None:
        """Raises `BadModelFile` when the library cannot read a vocabulary there."""
        self._api = library.api
        params = self._api.llama_model_default_params()
        params.vocab_only = True
        self._model: int | None = self._api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise BadModelFile(f"{path.name} holds no readable vocabulary: {library.last_log_lines()}")
        self._vocab: int = self._api.llama_model_get_vocab(self._model)
        self.n_tokens: int = self._api.llama_vocab_n_tokens(self._vocab)
        self.adds_bos: bool = self._api.llama_vocab_get_add_bos(self._vocab)
        """Whether `tokenize(..., add_special=True)` puts the BOS token in front."""
        self.bos_id = _id_or_none(self._api.llama_vocab_bos(self._vocab))
        self.eos_id = _id_or_none(self._api.llama_vocab_eos(self._vocab))
        self.bos_piece = self._special_text(self.bos_id)
        """What chat templates call `bos_token`; empty when the model has none."""
        self.eos_piece = self._special_text(self.eos_id)
        template: bytes | None = self._api.llama_model_chat_template(self._model, None)
        self.chat_template = template.decode("utf-8", "replace") if template else None
        """Jinja text, or None when the file carries none."""

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Every id that ends a generation, ascending: often more than EOS alone."""
        return tuple(i for i in range(self.n_tokens) if self._api.llama_vocab_is_eog(self._vocab, i))

    @cached_property
    def adds_space_prefix(self) -> bool:
        """Whether a text's first piece starts with a space that was not in the text (drop it once when decoding)."""
        ids = self.tokenize("a", add_special=False, parse_special=False)
        return bool(ids) and self.piece(ids[0]).startswith(b" ")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`.

        `parse_special` turns written-out control tokens into their ids: for template text only, never for what
        a client wrote.
        """
        data = text.encode("utf-8", "replace")  # lone surrogates become "?"
        room = len(data) + 2
        while True:
            ids = (C.c_int32 * room)()
            count: int = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                return ids[:count]
            room = -count

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for, often a part of a character; control tokens are empty unless `special`.

        Raises `InvalidToken` for an id outside the vocabulary.
        """
        if not 0 <= token_id < self.n_tokens:
            raise InvalidToken(f"token id {token_id} is outside the vocabulary of {self.n_tokens}")
        room = 64
        while True:
            buffer = C.create_string_buffer(room)
            count: int = self._api.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def pieces(self) -> list[bytes]:
        """The bytes of every token, by id: all a stop-string matcher needs."""
        return [self.piece(token_id) for token_id in range(self.n_tokens)]

    def close(self) -> None:
        """Free the library's memory. Idempotent; nothing else may be called afterwards."""
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None

    def _special_text(self, token_id: int | None) -> str:
        return "" if token_id is None else self.piece(token_id, special=True).decode("utf-8", "replace")


def _id_or_none(token_id: int) -> int | None:
    return None if token_id == _NO_TOKEN else token_id
