"""What each token of a vocabulary stands for in bytes, without loading the library: for stop strings.

The table is u32 count, then per id in order u16 length and that many bytes, little-endian. Control and unknown tokens
are empty: they are no part of the text. The rules are those of llama.cpp's `llama_token_to_piece`.
"""

from collections.abc import Iterable
from enum import IntEnum

from shared.domain.errors import BadModelFile, UnsupportedModel
from shared.llama.cutting import ModelFile

_MAX_PIECE_BYTES = 65_535


class _TokenType(IntEnum):
    NORMAL = 1
    USER_DEFINED = 4
    BYTE = 6


def _byte_characters() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, the rest for characters from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()
_SPACE_MARK = "▁".encode()


def token_bytes(model: ModelFile) -> bytes:
    """The table of the model's vocabulary. Some 10 MB of short-lived objects for 49k tokens: call it off the loop.

    Raises `UnsupportedModel` for a tokenizer other than byte-level BPE and SentencePiece, `BadModelFile` for a
    vocabulary that contradicts itself.
    """
    kind = model.gguf.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModel(f"the tokenizer {kind!r} of {model.path.name} is not known: gpt2 and llama are")
    decode = _byte_level if kind == "gpt2" else _sentence_piece
    types = model.gguf.integers("tokenizer.ggml.token_type") or (_TokenType.NORMAL,) * model.n_vocab
    if len(types) != model.n_vocab:
        raise BadModelFile(f"{model.path.name}: {len(types)} token types for {model.n_vocab} tokens")
    texts = model.gguf.strings("tokenizer.ggml.tokens")
    return _encoded(decode(text, token_type) for text, token_type in zip(texts, types, strict=True))


def _encoded(pieces: Iterable[bytes]) -> bytes:
    body = bytearray(4)
    count = 0
    for piece in pieces:
        if len(piece) > _MAX_PIECE_BYTES:
            raise BadModelFile(f"token {count} stands for {len(piece)} bytes")
        body += len(piece).to_bytes(2, "little") + piece
        count += 1
    body[:4] = count.to_bytes(4, "little")
    return bytes(body)


def _byte_level(text: bytes, token_type: int) -> bytes:
    if token_type == _TokenType.USER_DEFINED:
        return text
    if token_type != _TokenType.NORMAL:
        return b""
    piece = bytearray()
    for character in text.decode(errors="replace"):
        byte = _BYTE_OF_CHARACTER.get(character)
        piece += character.encode() if byte is None else bytes((byte,))
    return bytes(piece)


def _sentence_piece(text: bytes, token_type: int) -> bytes:
    match token_type:
        case _TokenType.USER_DEFINED:
            return text
        case _TokenType.NORMAL:
            return text.replace(_SPACE_MARK, b" ")
        case _TokenType.BYTE:
            return _named_byte(text)
        case _:
            return b""


def _named_byte(text: bytes) -> bytes:
    """<0x0A> as its byte."""
    try:
        if len(text) == 6 and text.startswith(b"<0x") and text.endswith(b">"):
            return bytes.fromhex(text[3:5].decode())
    except ValueError:
        pass
    raise BadModelFile(f"the byte token {text[:32]!r} names no byte")
