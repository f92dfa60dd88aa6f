"""A few power cuts; `make power-cut` makes many."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.cut_server import ROOT
from tests.chaos.fsync_trace import read_notes, why_not
from tests.chaos.power_cut import cut_power

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

WRITER = """
import os, sys, threading
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(file, b"x" * 100)
os.fsync(file)
os.write(file, b"y" * 50)
syncing = threading.Thread(target=os.fdatasync, args=(file,))
syncing.start()
syncing.join()
os.write(file, b"z" * 7)
sys.exit(5)
"""


def test_what_any_thread_synced_is_noted_and_what_came_later_is_not(tmp_path: Path) -> None:
    written, notes = tmp_path / "written", tmp_path / "notes"
    tracer = [sys.executable, "-m", "tests.chaos.fsync_trace", str(notes)]
    done = subprocess.run([*tracer, sys.executable, "-c", WRITER, str(written)], cwd=ROOT, check=False)
    assert done.returncode == 5
    assert written.stat().st_size == 157
    assert read_notes(notes)[written.stat().st_ino] == 150


async def test_no_acknowledged_submission_or_commit_is_lost_in_a_power_cut(tmp_path: Path) -> None:
    report = await cut_power(tmp_path, cuts=6, policy="always", seed=1)
    assert report.lost == []
    assert report.cuts == 6
    assert min(report.submissions, report.commits) > 0


async def test_with_everysec_the_same_cuts_lose_what_was_acknowledged(tmp_path: Path) -> None:
    """This shows that the test above can fail."""
    report = await cut_power(tmp_path, cuts=2, policy="everysec", seed=1)
    assert report.bytes_cut > 0
    assert any(line.startswith("submission") for line in report.lost)
    assert any(line.startswith("token") for line in report.lost)
