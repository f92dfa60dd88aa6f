"""A model's chat template (Jinja), rendered in a sandbox: bounded in time and in size.

The template comes with the model file, so it is foreign code: it may not reach Python objects, change anything, run
for long or make huge texts.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.domain.errors import TemplateError

MAX_SOURCE_CHARACTERS: Final = 512 * 1024
MAX_REPEATED_CHARACTERS: Final = 64 * 1024  # of a "text * number" inside a template
_FILE_NAME: Final = "<chat template>"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


class _TooLong(BaseException):
    """Ends a template that runs too long. No `Exception`: nothing inside the template's run may swallow it."""


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # values of a foreign template
        if operator == "**" and (abs(left) > 1_000 or abs(right) > 10):
            raise jinja2.TemplateRuntimeError("uses ** on numbers that are not small")
        sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
        if operator == "*" and hasattr(sized, "__len__") and len(sized) * times > MAX_REPEATED_CHARACTERS:
            raise jinja2.TemplateRuntimeError("repeats a text too often")
        return super().call_binop(context, operator, left, right)


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateRuntimeError(str(message)[:300])


class ChatTemplate:
    """Compiled once per model; rendering blocks, so it belongs on an executor thread."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        now: Callable[[], float],
        limit_s: float = 1.0,
        max_characters: int = 16 * 1024 * 1024,
    ) -> None:
        """Raises `TemplateError` for a text that is no template. `now`: monotonic seconds."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateError("the model's chat template is too long")
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _refuse
        try:
            code = environment.compile(source, filename=_FILE_NAME)
            self._template = jinja2.Template.from_code(environment, code, environment.globals)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise TemplateError(f"the model's chat template is broken: {error}") from None
        self._variables: Mapping[str, object] = {"bos_token": bos_token, "eos_token": eos_token}
        self._now = now
        self._limit_s = limit_s
        self._max_characters = max_characters

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt up to where the assistant begins. Raises `TemplateError`: refused, failed, too long."""
        until_s = self._now() + self._limit_s

        def watch(frame: FrameType, _event: str, _argument: object) -> Any:  # the type of trace functions
            if frame.f_code.co_filename != _FILE_NAME:
                return None
            if self._now() > until_s:
                raise _TooLong
            return watch

        traced_before = sys.gettrace()
        sys.settrace(watch)
        try:
            return self._rendered(messages)
        except TemplateError:
            raise
        except _TooLong:
            raise TemplateError("the model's chat template runs too long") from None
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template refuses these messages: {error.message}") from None
        except Exception as error:  # noqa: BLE001  whatever foreign code trips over is its failure
            raise TemplateError(f"the model's chat template failed: {type(error).__name__}") from None
        finally:
            sys.settrace(traced_before)

    def _rendered(self, messages: Sequence[ChatMessage]) -> str:
        pieces: list[str] = []
        room = self._max_characters
        for piece in self._template.generate(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=True,
            **self._variables,
        ):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise TemplateError("the model's chat template makes too long a prompt")
        return "".join(pieces)
