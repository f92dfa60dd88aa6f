from services.cli.domain.memory import available_of, worker_memory_mb

GIB = 1024**3
MEMINFO = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nSwapFree: 0 kB\n"


def test_workers_share_four_fifths_of_what_is_available() -> None:
    assert worker_memory_mb(10 * GIB, 4) == 2048


def test_a_worker_always_gets_something() -> None:
    assert worker_memory_mb(0, 4) == 1
    assert worker_memory_mb(GIB, 0) > 0


def test_the_system_says_what_is_available() -> None:
    assert available_of(MEMINFO, None, None) == 8 * GIB


def test_the_limit_of_the_container_counts_when_it_is_smaller() -> None:
    assert available_of(MEMINFO, f"{2 * GIB}\n", f"{GIB}\n") == GIB
    assert available_of(MEMINFO, "max\n", "123") == 8 * GIB


def test_a_system_that_says_nothing_is_admitted() -> None:
    assert available_of("", None, None) is None
