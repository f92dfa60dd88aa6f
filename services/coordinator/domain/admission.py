"""Whether what a node says of itself can be true at all."""

import ipaddress
import math
import re
from urllib.parse import urlsplit

from shared.domain.errors import InvalidInput
from shared.domain.measured import check_measured
from shared.domain.plan import NodeCapability

_HOST_LABEL = re.compile(r"(?!xn--)[A-Za-z0-9_-]{1,63}")
MIN_MEMORY_BYTES = 1 << 20  # less holds no layer of any model
MAX_MEMORY_BYTES = 1 << 50
MAX_SPEED = 1e16  # weight bytes per second: a thousand times the fastest memory known
MAX_SLOTS = 4_096
MAX_CONTEXT_TOKENS = 1 << 24
MAX_CORES = 4_096
MAX_TEXT = 256
MAX_LABELS = 32


def check_capability(capability: NodeCapability) -> None:
    """Raise `InvalidInput`, naming the field, for values that no node can have. True values may still be lies."""
    if not math.isfinite(capability.speed) or not 0 < capability.speed <= MAX_SPEED:
        raise InvalidInput(f"speed must lie in (0, {MAX_SPEED:g}]", param="capability.speed")
    for name, value, low, high in (
        ("memory_bytes", capability.memory_bytes, MIN_MEMORY_BYTES, MAX_MEMORY_BYTES),
        ("slots", capability.slots, 1, MAX_SLOTS),
        ("context_tokens", capability.context_tokens, 1, MAX_CONTEXT_TOKENS),
        ("cores", capability.cores, 1, MAX_CORES),
        ("labels", len(capability.labels), 0, MAX_LABELS),
    ):
        if not low <= value <= high:
            raise InvalidInput(f"{name} must lie in [{low}, {high}], not {value}", param=f"capability.{name}")
    texts = [text for label in capability.labels for text in label]
    texts += [capability.host, capability.numerics_class, capability.device]
    if any(len(text) > MAX_TEXT for text in texts):
        raise InvalidInput(f"host, class, device and labels have at most {MAX_TEXT} characters", param="capability")
    if capability.measured is not None:
        check_measured(capability.node_id, capability.measured)


def check_address(address: str) -> None:
    """Raise `InvalidInput` unless this is scheme, host and port alone, such that a call gets an answer or none."""
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port
        is_whole = address.rstrip("/") == f"{url.scheme}://{url.netloc}" and "@" not in url.netloc
        if url.scheme not in {"http", "https"} or port == 0 or not is_whole or not _is_host(host):
            raise ValueError(address)
    except ValueError:
        raise InvalidInput("an address is http://host:port of a host that can be called", param="address") from None


def _is_host(host: str) -> bool:
    if ":" in host:
        return ipaddress.IPv6Address(host).scope_id is None
    return len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in host.split("."))
