import json

import pytest

from services.cli.domain.output import terminal_line


def log_line(level: str) -> str:
    return json.dumps({"level": level, "event": "something"}) + "\n"


@pytest.mark.parametrize(("level", "is_shown"), [("info", False), ("debug", False), ("warning", True), ("error", True)])
def test_json_lines_reach_the_terminal_from_warning_on(level: str, is_shown: bool) -> None:
    shown = terminal_line("api", log_line(level), logs_json=True)
    assert shown == (f"[api] {log_line(level).strip()}" if is_shown else None)


def test_only_errors_are_shown_while_the_cluster_stops() -> None:
    assert terminal_line("api", log_line("warning"), logs_json=True, is_stopping=True) is None
    assert terminal_line("api", log_line("error"), logs_json=True, is_stopping=True) is not None


def test_a_traceback_is_shown() -> None:
    assert terminal_line("api", "KeyError: 'x'\n", logs_json=True) == "[api] KeyError: 'x'"


def test_the_everyday_log_of_redis_is_not_shown() -> None:
    assert terminal_line("redis", "1:M * Ready to accept connections", logs_json=False) is None


@pytest.mark.parametrize("line", ["", "   \n"])
def test_an_empty_line_is_not_shown(line: str) -> None:
    assert terminal_line("api", line, logs_json=True) is None


@pytest.mark.parametrize("line", ["[" * 100_000, "42", '"text"', "NaN"])
def test_a_line_that_is_json_but_no_log_line_is_shown_as_text(line: str) -> None:
    assert terminal_line("api", line, logs_json=True) == f"[api] {line}"
