"""Whether a service can do its work: its dependencies, asked in the background, answered from memory."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from shared.domain.errors import ButterflyError, RegistryUntrusted
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

ASK_EVERY_S = 2.0
ASK_AT_START_EVERY_S = 0.25  # until every dependency was reached once: others wait for this service

Check = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class CheckState:
    ok: bool = False
    reached_once: bool = False
    untrusted: bool = False
    took_ms: float = 0.0
    error: str | None = "not asked yet"


@dataclass(frozen=True, slots=True)
class Report:
    status: str
    """starting, ready, degraded (a dependency was there and is away now), untrusted (one may have forgotten) or
    draining."""
    is_ready: bool
    checks: Mapping[str, CheckState] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return {
            "status": self.status,
            "checks": {
                name: {"ok": state.ok, "ms": round(state.took_ms, 1), "error": state.error}
                for name, state in self.checks.items()
            },
        }


def judge(checks: Mapping[str, CheckState], *, is_draining: bool) -> Report:
    """A dependency counts until it was reached once; a later outage is told, but takes no replica away.

    One that may have forgotten what it acknowledged does: more work would only be lost as well.
    """
    if is_draining:
        return Report("draining", is_ready=False, checks=checks)
    if any(state.untrusted for state in checks.values()):
        return Report("untrusted", is_ready=False, checks=checks)
    if not all(state.reached_once for state in checks.values()):
        return Report("starting", is_ready=False, checks=checks)
    if not all(state.ok for state in checks.values()):
        return Report("degraded", is_ready=True, checks=checks)
    return Report("ready", is_ready=True, checks=checks)


class Readiness:
    def __init__(self, checks: Mapping[str, Check], clock: Clock) -> None:
        self._checks = dict(checks)
        self._clock = clock
        self._states = {name: CheckState() for name in checks}

    def report(self, *, is_draining: bool) -> Report:
        return judge(self._states, is_draining=is_draining)

    async def round(self) -> None:
        """Ask every dependency, then wait until it is time for the next round."""
        for name, check in self._checks.items():
            await self._ask(self._states[name], check)
        all_reached = all(state.reached_once for state in self._states.values())
        await self._clock.sleep(ASK_EVERY_S if all_reached else ASK_AT_START_EVERY_S)

    async def _ask(self, state: CheckState, check: Check) -> None:
        began_s = self._clock.now_s()
        try:
            await check()
        except ButterflyError as error:
            state.ok, state.error = False, error.message
            if isinstance(error, RegistryUntrusted) and not state.untrusted:
                log.error("dependency_untrusted", extra={"reason": error.message})
                state.untrusted = True  # until it is found well: being away as well does not mend it
        except Exception as error:  # noqa: BLE001  whatever it is, the dependency is not there
            state.ok, state.error = False, type(error).__name__
        else:
            state.ok, state.error, state.reached_once, state.untrusted = True, None, True, False
        state.took_ms = (self._clock.now_s() - began_s) * 1000
