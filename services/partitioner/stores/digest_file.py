"""Keeps the tensor digests of a model in a file beside it, so that they are computed once."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from shared.llama.gguf import GgufFile

log = logging.getLogger(__name__)

_VERSION = 1
_MAX_BYTES = 64 << 20
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_path(model_path: Path) -> Path:
    return model_path.with_name(f"{model_path.name}.digests.json")


def load_digests(gguf: GgufFile) -> dict[str, bytes] | None:
    """The digests kept for exactly this file; None when there are none, or they are of another state of it."""
    path = digest_path(gguf.path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        kept: object = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or any(kept.get(name) != value for name, value in _identity(gguf).items()):
        return None
    tensors: object = kept.get("tensors")
    if not isinstance(tensors, dict) or tensors.keys() != gguf.tensors.keys():
        return None
    if not all(isinstance(digest, str) and _HEX_DIGEST.fullmatch(digest) for digest in tensors.values()):
        return None
    return {name: bytes.fromhex(digest) for name, digest in tensors.items()}


def save_digests(gguf: GgufFile, digests: Mapping[str, bytes]) -> None:
    """Write the file beside the model. A folder that cannot be written to costs a computation at each start."""
    path = digest_path(gguf.path)
    content = {**_identity(gguf), "tensors": {name: digest.hex() for name, digest in digests.items()}}
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(content))
        part.replace(path)
    except OSError as error:
        log.warning("digests_not_kept", extra={"file": path.name, "reason": error.strerror})


def _identity(gguf: GgufFile) -> dict[str, int]:
    return {"version": _VERSION, "size_bytes": gguf.size_bytes, "mtime_ns": gguf.mtime_ns}
