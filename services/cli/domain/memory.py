"""How much memory each local worker may use."""

SHARE_FOR_WORKERS = 0.8
"""The rest is for the control services, the page cache and whoever else uses the machine."""
_MIB = 1024 * 1024


def worker_memory_mb(available_bytes: int, num_workers: int) -> int:
    """An equal share each, in MiB; at least 1."""
    return max(1, int(available_bytes * SHARE_FOR_WORKERS) // max(1, num_workers) // _MIB)


def available_of(meminfo: str, cgroup_limit: str | None, cgroup_used: str | None) -> int | None:
    """Bytes that a new program could have, by /proc/meminfo and the files of the cgroup; None when neither says."""
    found = [int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    if cgroup_limit is not None and cgroup_limit.strip().isdigit():  # "max": no limit
        used = int(cgroup_used) if cgroup_used is not None and cgroup_used.strip().isdigit() else 0
        found.append(max(0, int(cgroup_limit) - used))
    return min(found, default=None)
