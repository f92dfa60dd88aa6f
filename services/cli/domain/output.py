"""What of a child's output the operator's terminal shows."""

import json

_ERRORS = frozenset({"ERROR", "CRITICAL"})
_WARNINGS = _ERRORS | {"WARNING"}


def terminal_line(name: str, line: str, *, logs_json: bool, is_stopping: bool = False) -> str | None:
    """The line as the terminal shows it, or None. JSON lines below WARNING stay in the log file.

    `logs_json` False (Redis): plain lines are its everyday log; of a service they are a traceback or a library's cry.
    `is_stopping`: services that stop in order miss one another; only errors are worth a line then.
    """
    text = line.rstrip()
    if not text:
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        return f"[{name}] {text}" if logs_json else None
    level = str(parsed.get("level", "")).upper()
    return f"[{name}] {text}" if level in (_ERRORS if is_stopping else _WARNINGS) else None
