"""The key with which the coordinator signs, kept across restarts."""

from pathlib import Path

from shared.domain.signing import SigningKey
from shared.runtime.key_file import load_key


def load_coordinator_key(data_dir: Path) -> SigningKey:
    """From `data_dir`/coordinator_key, made at the first start. Raises `ConfigError`."""
    return load_key(data_dir / "coordinator_key")
