"""How a model in the models folder is called: after its file."""

import re

from shared.domain.errors import InvalidInput

SUFFIX = ".gguf"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked(name: str) -> str:
    """Raises `InvalidInput` for what cannot be a model's name (it is a file's name, too)."""
    if not _NAME.fullmatch(name) or name.endswith(SUFFIX):
        raise InvalidInput(f"{name!r} is no model name: letters, digits, '.', '_' and '-', without {SUFFIX}")
    return name


def name_from(source: str) -> str:
    """The name that a path or URL suggests: its last part in lower case, without the suffix."""
    last = source.split("?", 1)[0].split("#", 1)[0].rstrip("/").rsplit("/", 1)[-1]
    return checked(re.sub(r"[^a-z0-9._-]+", "-", last.lower().removesuffix(SUFFIX)).strip("-."))
