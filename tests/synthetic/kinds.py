"""The kinds of lie of the long run: those of the attack kit that need no model, told now and then at any seat."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.worker.domain.identity import Identity
from services.worker.ports import Coordinator, ReceiptSigner
from services.worker.service.receipts import KeySigner
from tests.byzantine import link_faults, report_faults
from tests.byzantine.engine_faults import Fault, Lazy, OtherToken, SkippedLayers, SkippedRows, WrongHidden
from tests.byzantine.link_faults import LinkFault
from tests.byzantine.seat_watch import Place
from tests.byzantine.signer_faults import BrokenChain, FalseInput, FalseOutput, NoSignature, OldReceipt


@dataclass(frozen=True, slots=True)
class LieKind:
    fault: Fault | None = None
    """In the engine."""
    make_signer: Callable[[Identity], ReceiptSigner] = KeySigner
    link_fault: LinkFault | None = None
    """On its links to other seats."""
    wrap_coordinator: Callable[[Coordinator, Identity, Place], Coordinator] | None = None
    """What it tells the coordinator."""
    is_convicted: bool = True
    """False: not at every seat, or by nothing that proves it."""


KINDS: Mapping[str, LieKind] = {
    "wrong-hidden": LieKind(WrongHidden()),
    "skipped-layers": LieKind(SkippedLayers()),
    "skipped-rows": LieKind(SkippedRows()),
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
    "equivocation": LieKind(link_fault=link_faults.OtherRows(), is_convicted=False),
    "unseen-equivocation": LieKind(link_fault=link_faults.OtherRowsUnseen(), is_convicted=False),
    "repeated-rows": LieKind(link_fault=link_faults.Repeated(), is_convicted=False),
    "not-finite": LieKind(link_fault=link_faults.NotFinite(), is_convicted=False),
    "truncated-frames": LieKind(link_fault=link_faults.Truncated(), is_convicted=False),
    "double-signing": LieKind(wrap_coordinator=report_faults.DoubleSigned),
    "other-epoch": LieKind(wrap_coordinator=report_faults.OtherEpoch, is_convicted=False),
    "not-canonical": LieKind(wrap_coordinator=report_faults.NotCanonical, is_convicted=False),
    "no-receipts": LieKind(wrap_coordinator=report_faults.NoReceipts, is_convicted=False),
    "false-link-fault": LieKind(wrap_coordinator=report_faults.FalseLinkFault, is_convicted=False),
    "gives-up": LieKind(wrap_coordinator=report_faults.GivesUp, is_convicted=False),
}
