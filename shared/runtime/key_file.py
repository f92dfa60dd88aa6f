"""Signing keys on disk, made once and kept."""

import os
import tempfile
from pathlib import Path

from shared.domain.signing import KEY_BYTES, SigningKey
from shared.runtime.config import ConfigError


def load_key(path: Path) -> SigningKey:
    """The key in `path`, 32 bytes that its owner alone can read; made, with its folder, if there is none.

    Two processes that start at once get the same one. Raises `ConfigError` for a file that is no key or cannot be used:
    a new key would be a new node, so it is never replaced.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path, SigningKey.generate().secret)
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the signing key {path} cannot be used: {error.strerror}") from None
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"{path} is no signing key of {KEY_BYTES} bytes: restore it, or remove it to be somebody new")
    return SigningKey(secret)


def _create(path: Path, secret: bytes) -> None:
    """Whole or not at all, and never in place of another."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass  # somebody else was faster: theirs counts
    finally:
        temporary.unlink()
