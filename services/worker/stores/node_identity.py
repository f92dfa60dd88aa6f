"""The key that this node is, kept across restarts."""

from pathlib import Path

from services.worker.domain.identity import Identity
from shared.runtime.key_file import load_key


def load_identity(data_dir: Path) -> Identity:
    """By the key in `data_dir`/node_key, made at the first start. Raises `ConfigError`."""
    key = load_key(data_dir / "node_key")
    return Identity(key.node_id, key)
