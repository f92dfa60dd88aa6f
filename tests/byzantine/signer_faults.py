"""Signers that say something else than the seat has computed. Plugged in by constructor, in place of the honest one."""

from dataclasses import replace

from services.worker.domain.identity import Identity
from services.worker.ports import ReceiptSigner
from services.worker.service.receipts import KeySigner
from shared.domain.receipt import Receipt
from shared.domain.signing import SIGNATURE_BYTES, Signed

OTHER_DIGEST = "5a" * 32


class FalseOutput(ReceiptSigner):
    """Computes honestly and signs another result: accuses whoever tells the truth, or hides what it sent on."""

    def __init__(self, identity: Identity) -> None:
        self._honest = KeySigner(identity)

    def sign(self, receipt: Receipt) -> Signed:
        return self._honest.sign(replace(receipt, out_digest=OTHER_DIGEST))


class FalseInput(ReceiptSigner):
    """Claims to have been given something else."""

    def __init__(self, identity: Identity) -> None:
        self._honest = KeySigner(identity)

    def sign(self, receipt: Receipt) -> Signed:
        return self._honest.sign(replace(receipt, in_digest=OTHER_DIGEST))


class OldReceipt(ReceiptSigner):
    """Gives its first receipt again and again."""

    def __init__(self, identity: Identity) -> None:
        self._honest = KeySigner(identity)
        self._first: Signed | None = None

    def sign(self, receipt: Receipt) -> Signed:
        if self._first is None:
            self._first = self._honest.sign(receipt)
        return self._first


class BrokenChain(ReceiptSigner):
    """Does not continue what it signed before."""

    def __init__(self, identity: Identity) -> None:
        self._honest = KeySigner(identity)

    def sign(self, receipt: Receipt) -> Signed:
        return self._honest.sign(replace(receipt, prev_receipt=OTHER_DIGEST))


class NoSignature(ReceiptSigner):
    """Sends receipts with a signature of zeros."""

    def __init__(self, identity: Identity) -> None:
        self._honest = KeySigner(identity)

    def sign(self, receipt: Receipt) -> Signed:
        return Signed(self._honest.sign(receipt).text, bytes(SIGNATURE_BYTES))
