from pathlib import Path

from services.worker.engine.memory import available_memory_bytes


def write(folder: Path, available_kb: int | None, limit: str | None) -> tuple[Path, Path]:
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: 9 kB\nMemAvailable: {available_kb} kB\n" if available_kb is not None else "")
    if limit is not None:
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text("1000\n")
    return meminfo, folder


def test_the_smaller_of_machine_and_container_counts(tmp_path: Path) -> None:
    assert available_memory_bytes(*write(tmp_path, 10, "5000")) == 4000
    assert available_memory_bytes(*write(tmp_path, 3, "5000")) == 3072


def test_a_container_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert available_memory_bytes(*write(tmp_path, 10, "500")) == 0


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    assert available_memory_bytes(*write(tmp_path, 10, "max")) == 10_240


def test_where_nobody_says_nothing_is_known(tmp_path: Path) -> None:
    assert available_memory_bytes(*write(tmp_path, None, None)) is None
    assert available_memory_bytes(tmp_path / "none", tmp_path) is None
