"""What this machine has: memory."""

import os
from pathlib import Path

from services.cli.domain.memory import available_of

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """What the system and the container leave us; half of the memory where neither can be asked."""
    limit, used = _text(_CGROUP / "memory.max"), _text(_CGROUP / "memory.current")
    known = available_of(_text(_MEMINFO) or "", limit, used)
    return known if known is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
