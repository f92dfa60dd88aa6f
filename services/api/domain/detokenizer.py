"""Bytes of tokens to text: a token is often a part of a character."""

import codecs


class TextDecoder:
    """One per answer. Never cuts a character: an incomplete one waits for the next token."""

    def __init__(self, *, drop_leading_space: bool = False) -> None:
        """`drop_leading_space`: the vocabulary writes a space before a text's first word that is not in the text."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_leading_space = drop_leading_space

    def feed(self, piece: bytes) -> str:
        """The characters completed by `piece`; bytes that are no UTF-8 become U+FFFD."""
        return self._trimmed(self._decoder.decode(piece))

    def finish(self) -> str:
        """What is left when no more tokens come: nothing, or U+FFFD for an unfinished character."""
        return self._trimmed(self._decoder.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if self._drop_leading_space and text:
            self._drop_leading_space = False
            return text.removeprefix(" ")
        return text
