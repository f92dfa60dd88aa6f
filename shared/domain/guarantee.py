"""What an answer's proof tells, once it was checked."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.domain.ids import NodeId
from shared.domain.numerics import Profile
from shared.domain.tail_state import TailState
from shared.domain.task import Verification
from shared.domain.windows import Window


@dataclass(frozen=True, slots=True)
class AgreedWindow:
    """What f+1 nodes agreed on: chain values in hex, by boundary, before and after the window's rows."""

    window: Window
    starts: Mapping[int, str]
    ends: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a bundle that holds tells."""

    mode: Verification
    profile: Profile
    f: int
    num_tokens: int
    complete: bool
    nodes: tuple[NodeId, ...]
    """All that signed something the answer rests on."""
    windows: tuple[AgreedWindow, ...]
    model_root: str
    numerics_class: str
    row_class: int
    """Calls of this class give the agreed bits again (shared.domain.numerics)."""
    coordinator_key: bytes
    keys_are_known: bool
    """False: the bundle's own word for who the coordinator is."""
    tail_state: TailState
    """Passed: checked, too. Anything else is the coordinator's word."""
    tail_nodes: tuple[NodeId, ...]
    """Those that computed it all once more, by stage."""

    @property
    def sentence(self) -> str:
        size = f"{_count(self.num_tokens, 'token')} in {_count(len(self.windows), 'window')}"
        if self.mode is Verification.NONE:
            what = f"unverified (mode none, profile {self.profile}): {size}, each stage signed by one node"
        else:
            what = (
                f"verified: mode {self.mode}, profile {self.profile}, f = {self.f}: {size}, each stage computed"
                f" alike by at least {self.f + 1} of {_count(len(self.nodes), 'node')}"
            )
        whose = "a coordinator you trust" if self.keys_are_known else "the coordinator the file names"
        whole = "" if self.complete else "; not the whole answer"
        return f"{self._revoked}{what}; committed by {whose}{whole}; {self._tail}"

    @property
    def _revoked(self) -> str:
        return "revoked: " if self.tail_state is TailState.FAILED else ""

    @property
    def _tail(self) -> str:
        match self.tail_state:
            case TailState.PASSED:
                return f"tail audit: passed, computed alike once more by {len(self.tail_nodes)} fresh nodes"
            case TailState.FAILED:
                return "tail audit: failed, fresh nodes came to another result"
            case state:
                return f"tail audit: {state}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
