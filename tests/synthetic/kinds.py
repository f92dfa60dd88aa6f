"""The kinds of lie of the long run: faults of the attack kit that need nothing but an engine or a signature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.worker.domain.identity import Identity
from services.worker.ports import ReceiptSigner
from services.worker.service.receipts import KeySigner
from tests.byzantine.engine_faults import Fault, Lazy, OtherToken, SkippedLayers, WrongHidden
from tests.byzantine.signer_faults import BrokenChain, FalseInput, FalseOutput, NoSignature, OldReceipt


@dataclass(frozen=True, slots=True)
class LieKind:
    fault: Fault | None = None
    """In the engine."""
    make_signer: Callable[[Identity], ReceiptSigner] = KeySigner
    is_convicted: bool = True
    """False: not at every seat, or by nothing that proves it."""


KINDS: Mapping[str, LieKind] = {
    "wrong-hidden": LieKind(WrongHidden()),
    "skipped-layers": LieKind(SkippedLayers()),
    "other-token": LieKind(OtherToken()),
    "lazy": LieKind(Lazy()),
    "lazy-and-false": LieKind(Lazy(), FalseOutput),
    "false-output": LieKind(make_signer=FalseOutput),
    "false-input": LieKind(make_signer=FalseInput, is_convicted=False),
    "wrong-and-false": LieKind(WrongHidden(), FalseInput, is_convicted=False),
    "old-receipt": LieKind(make_signer=OldReceipt, is_convicted=False),
    "broken-chain": LieKind(make_signer=BrokenChain),
    "wrong-and-broken": LieKind(WrongHidden(), BrokenChain),
    "no-signature": LieKind(make_signer=NoSignature, is_convicted=False),
}
