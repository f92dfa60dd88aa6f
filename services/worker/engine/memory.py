"""How much memory is left: the library fills a whole KV cache at once, and a process asking for too much is killed."""

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """What the machine, and the container around this process, have left; None where neither says."""
    found = [left for left in (_left_on_machine(meminfo), _left_in_cgroup(cgroup)) if left is not None]
    return min(found, default=None)


def _left_on_machine(meminfo: Path) -> int | None:
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_cgroup(cgroup: Path) -> int | None:
    limit, used = _text(cgroup / "memory.max").strip(), _text(cgroup / "memory.current").strip()
    return max(0, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else None  # "max": no limit


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
