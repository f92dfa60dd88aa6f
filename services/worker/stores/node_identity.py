"""The id under which this node is known, kept across restarts."""

import os
import re
import secrets
from pathlib import Path

from shared.domain.ids import NodeId

_NODE_ID = re.compile(r"node-[0-9a-f]{16}")


def load_node_id(data_dir: Path) -> NodeId:
    """The id in `data_dir`/node_id, made at the first start. Readable by the owner alone."""
    path = data_dir / "node_id"
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        known = path.read_text().strip()
    except FileNotFoundError:
        known = ""
    if _NODE_ID.fullmatch(known):
        return NodeId(known)
    made = f"node-{secrets.token_hex(8)}"
    temporary = path.with_suffix(".part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return NodeId(made)
