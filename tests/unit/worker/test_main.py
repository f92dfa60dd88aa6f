import os
import subprocess
import sys

ASK = "import services.worker.__main__, os; print(os.environ['GOMP_SPINCOUNT'], os.environ['GGML_NO_BACKTRACE'])"


def told(environ: dict[str, str]) -> str:
    command = [sys.executable, "-c", ASK]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()


def test_a_worker_sets_what_the_engine_s_libraries_read_when_they_are_loaded() -> None:
    plain = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    assert told(plain) == "300 1"
    assert told({**plain, "GOMP_SPINCOUNT": "600"}) == "600 1"
