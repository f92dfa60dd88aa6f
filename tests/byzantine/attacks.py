"""The kinds of lie that a worker of the attack kit tells (verification.md section 15)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.worker.clients.coordinator import HttpCoordinator
from services.worker.clients.link import HttpLinkCarrier
from services.worker.domain.identity import Identity
from services.worker.ports import Coordinator, LinkCarrier, ReceiptSigner
from services.worker.service.receipts import KeySigner
from shared.resilience.http_client import PeerClient, PeerClients
from tests.byzantine.engine_faults import Fault, Lazy, OtherToken, RarelyWrong, SkippedLayers, WrongHidden
from tests.byzantine.link_faults import FalseAccuser, equivocating, equivocating_unseen, lying_around_the_ring
from tests.byzantine.signer_faults import BrokenChain, FalseInput, FalseOutput, NoSignature, OldReceipt


@dataclass(frozen=True, slots=True)
class Attack:
    says: str
    fault: Fault | None = None
    """In the engine."""
    make_signer: Callable[[Identity], ReceiptSigner] = KeySigner
    make_carrier: Callable[[PeerClients], LinkCarrier] = HttpLinkCarrier
    make_coordinator: Callable[[PeerClient, str], Coordinator] = HttpCoordinator
    is_convicted: bool = True
    """False: nothing proves it, the session goes on without the node."""


_ACCUSER = FalseAccuser()

ATTACKS: Mapping[str, Attack] = {
    "wrong-hidden": Attack("computes every row a little wrong", WrongHidden()),
    "rarely-wrong": Attack("computes every 4th call a little wrong", RarelyWrong(4)),
    "skipped-layers": Attack("passes rows on without running its layers", SkippedLayers()),
    "other-token": Attack("prefers the second best token", OtherToken()),
    "lazy": Attack("guesses when it is to replay", Lazy()),
    "false-output": Attack("signs another result than it computed", make_signer=FalseOutput),
    "false-input": Attack("claims to have been given other rows", make_signer=FalseInput),
    "equivocation": Attack("sends other rows to the next stage than it signs", make_carrier=equivocating),
    "unseen-equivocation": Attack(
        "sends other rows than it signs, but not through the coordinator",
        make_carrier=equivocating_unseen,
        is_convicted=False,
    ),
    "ring-lie": Attack(
        "sends other tokens around the ring than it drafts", make_carrier=lying_around_the_ring, is_convicted=False
    ),
    "false-link-fault": Attack(
        "says again and again that its neighbours' links are broken",
        make_carrier=_ACCUSER.carrier,
        make_coordinator=_ACCUSER.coordinator,
        is_convicted=False,
    ),
    "old-receipt": Attack("gives an old receipt again", make_signer=OldReceipt, is_convicted=False),
    "broken-chain": Attack("signs what does not continue its last receipt", make_signer=BrokenChain),
    "no-signature": Attack("sends receipts without a valid signature", make_signer=NoSignature, is_convicted=False),
}
