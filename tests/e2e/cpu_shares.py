"""Parts of a core for processes: control groups with a quota, as containers have them. Linux only, and as root."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PERIOD_US = 5_000
"""Short beside an engine call: a process with a half of a core is then one on a core of half the speed, and not one
that computes at full speed for a while and stands still for the next."""
MOUNTS = Path("/proc/self/mounts")


class NoControlGroups(Exception):
    """This machine does not let us limit processes; says why."""


@contextmanager
def limited(processes: Sequence[tuple[int, float]]) -> Iterator[None]:
    """Processes (pid, cores) with all their threads get so many cores each until the end. Raises `NoControlGroups`."""
    root, is_unified = _root()
    groups = [root / f"butterfly-{os.getpid()}-{pid}" for pid, _ in processes]
    try:
        for group, (pid, cores) in zip(groups, processes, strict=True):
            _make(group, cores, is_unified=is_unified)
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in filter(Path.exists, groups):
            for left in (group / "cgroup.procs").read_text().split():
                (root / "cgroup.procs").write_text(left)
            group.rmdir()


def _make(group: Path, cores: float, *, is_unified: bool) -> None:
    quota_us = round(cores * PERIOD_US)
    try:
        group.mkdir()
        if is_unified:
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    except OSError as error:
        raise NoControlGroups(f"{group} cannot be made: {error.strerror}") from None


def _root() -> tuple[Path, bool]:
    """Where groups with a processor quota are made, and whether it is of version 2."""
    mounts = [line.split()[1:4] for line in MOUNTS.read_text().splitlines()]
    for place, kind, options in mounts:
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(place), False
    for place, kind, _ in mounts:
        if kind == "cgroup2" and "cpu" in (Path(place) / "cgroup.subtree_control").read_text().split():
            return Path(place), True
    raise NoControlGroups("no control groups with the cpu controller are mounted")
