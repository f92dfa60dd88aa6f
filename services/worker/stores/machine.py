"""What this machine is and has, as the system tells it."""

import hashlib
import os
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def host_fingerprint() -> str:
    """Equal for the workers of one machine, and tells nobody its machine id."""
    parts = [_text(Path("/etc/machine-id")), _text(_PROC / "sys/kernel/random/boot_id")]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16, person=b"bfly/host/1").hexdigest()


def available_memory_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Memory that could be taken now without swapping, within the limits of a container."""
    fields = (line.split() for line in _text(proc / "meminfo").splitlines())
    available = next((int(field[1]) * 1024 for field in fields if field and field[0] == "MemAvailable:"), 0)
    limit, used = _text(cgroup / "memory.max"), _text(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        return max(0, min(available, int(limit) - int(used)))
    return available


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
