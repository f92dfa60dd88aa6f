from pathlib import Path

from services.worker.stores.machine import available_memory_bytes, host_fingerprint, usable_cores


def machine(folder: Path, *, available_kb: int, limit: str | None = None, used: int = 0) -> Path:
    (folder / "meminfo").write_text(f"MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable: {available_kb} kB\n")
    if limit is not None:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    return folder


def test_the_memory_of_a_machine_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    folder = machine(tmp_path, available_kb=8_000)
    assert available_memory_bytes(folder, folder) == 8_000 * 1024


def test_a_container_has_no_more_memory_than_its_limit_leaves(tmp_path: Path) -> None:
    folder = machine(tmp_path, available_kb=8_000, limit="3000000", used=1_000_000)
    assert available_memory_bytes(folder, folder) == 2_000_000


def test_a_container_without_a_limit_has_the_machine_s_memory(tmp_path: Path) -> None:
    folder = machine(tmp_path, available_kb=8_000, limit="max")
    assert available_memory_bytes(folder, folder) == 8_000 * 1024


def test_the_fingerprint_of_a_host_is_stable_and_tells_no_machine_id() -> None:
    machine_id = Path("/etc/machine-id")
    assert host_fingerprint() == host_fingerprint()
    if machine_id.exists():
        assert machine_id.read_text().strip() not in host_fingerprint()


def test_a_machine_has_at_least_one_core() -> None:
    assert usable_cores() >= 1
