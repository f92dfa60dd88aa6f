import io
import json
import logging
from collections.abc import Iterator

import pytest

from shared.resilience.context import current_request_id
from shared.runtime.logging import configure_logging


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("scheduler", "INFO", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_is_one_json_object_with_its_extra_fields(lines: io.StringIO) -> None:
    logging.getLogger("x").info("stage_loaded", extra={"node_id": "n1"})
    line = json.loads(lines.getvalue())
    assert (line["event"], line["service"], line["level"], line["node_id"]) == (
        "stage_loaded",
        "scheduler",
        "info",
        "n1",
    )
    assert isinstance(line["ts"], float)


def test_a_line_names_the_request_it_belongs_to(lines: io.StringIO) -> None:
    token = current_request_id.set("r-1")
    logging.getLogger("x").info("task_accepted")
    current_request_id.reset(token)
    assert json.loads(lines.getvalue())["request_id"] == "r-1"


def test_an_exception_stays_on_its_line(lines: io.StringIO) -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("x").exception("loop_failed")
    assert lines.getvalue().count("\n") == 1
    assert "RuntimeError: broken" in json.loads(lines.getvalue())["error"]


def test_the_http_client_tells_only_what_is_wrong(lines: io.StringIO) -> None:
    logging.getLogger("httpx").info("HTTP Request: POST")
    assert not lines.getvalue()
