"""The check of a receipt: offline, and by a replay of the model in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.contracts.receipts import BundleBody
from shared.domain.bundle import TrustedKeys, check_bundle
from shared.domain.errors import InvalidInput
from shared.domain.guarantee import Guarantee
from shared.domain.ids import NodeId
from shared.domain.signing import KEY_BYTES, node_id_of

REPLAY = ("-m", "services.worker.engine.replay")
"""In a process of its own: a file that the library dislikes may abort it."""
_LIMIT_S = 3_600.0


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    coordinator: str
    nodes: dict[NodeId, str] | None = None


class _Verdict(BaseModel):
    equal: bool
    reason: str
    num_tokens: int
    num_digests: int


def check(content: bytes, trusted: TrustedKeys | None) -> Guarantee:
    """Raises `InvalidInput`, with a sentence that names what does not hold."""
    try:
        bundle = BundleBody.model_validate_json(content).bundle()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"this is no receipt: {where or 'the file'}: {first['msg']}") from None
    return check_bundle(bundle, trusted=trusted)


def read_keys(path: Path) -> TrustedKeys:
    """Raises `InvalidInput`."""
    try:
        keys = _Keys.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError:
        raise InvalidInput(f'{path} should hold {{"coordinator": hex, "nodes": {{id: hex}}}}') from None
    for node_id, key in (keys.nodes or {}).items():
        if node_id_of(_key(key, path)) != node_id:
            raise InvalidInput(f"{path}: the key of {node_id} is not its own")
    nodes = None if keys.nodes is None else frozenset(keys.nodes)
    return TrustedKeys(_key(keys.coordinator, path), nodes)


def replay(content: bytes, model: Path) -> str:
    """Compute a receipt that holds once more from the model's file; says what was compared.

    Raises `InvalidInput` with what differs.
    """
    if not model.is_file():
        raise InvalidInput(f"there is no model file {model}")
    command = [sys.executable, *REPLAY, str(model)]
    try:
        done = subprocess.run(command, input=content, capture_output=True, check=False, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"the replay did not end within {_LIMIT_S:g} s") from None
    try:
        verdict = _Verdict.model_validate(json.loads(done.stdout.strip().rpartition(b"\n")[2] or b"null"))
    except ValueError:  # pydantic's error is one, too
        raise InvalidInput(f"the engine gave up on {model.name} (exit code {done.returncode})") from None
    if not verdict.equal:
        raise InvalidInput(f"the replay differs: {verdict.reason}")
    compared = f"replayed: {verdict.num_tokens} tokens and {verdict.num_digests} chain values are equal"
    return f"{compared}; {verdict.reason}" if verdict.reason else compared


def _key(text: str, path: Path) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidInput(f"{path}: {text[:80]!r} is no public key of {KEY_BYTES} bytes in hex")
    return key
