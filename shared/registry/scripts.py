"""The Lua scripts of the registry, each behind one generated head: keys and state table come from their one source."""

from collections.abc import Iterable, Mapping
from importlib.resources import files

from shared.domain.task_state import TERMINAL, TRANSITIONS, TaskState
from shared.registry.keys import PREFIXES, SINGLES

NAMES = (
    "submit",
    "claim",
    "advance",
    "open_session",
    "hold_sessions",
    "announce",
    "commit",
    "finish",
    "cancel",
    "renew",
    "attach",
    "reconcile",
    "queue",
    "append_receipts",
    "tail_audit",
    "dispute",
    "standing",
    "profile",
)


def load_scripts() -> Mapping[str, str]:
    """Source of each script by name."""
    folder = files("shared.registry") / "lua"
    head = _head() + (folder / "prelude.lua").read_text(encoding="utf-8")
    return {name: head + (folder / f"{name}.lua").read_text(encoding="utf-8") for name in NAMES}


def _head() -> str:
    transitions = {
        str(state): {str(event): str(after) for (before, event), after in TRANSITIONS.items() if before is state}
        for state in TaskState
    }
    rows = ", ".join(f"{state} = {_lua_table(row)}" for state, row in transitions.items())
    return "\n".join(
        (
            f"local K = {_lua_table({**PREFIXES, **SINGLES})}",
            f"local NEXT = {{{rows}}}",
            f"local TERMINAL = {_lua_set(TERMINAL)}",
            "",
        )
    )


def _lua_table(entries: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key} = '{value}'" for key, value in entries.items()) + "}"


def _lua_set(words: Iterable[str]) -> str:
    return "{" + ", ".join(f"{word} = true" for word in sorted(words)) + "}"
