"""Workers that tell the coordinator too much, too little, or about others. Plugged in around the honest client."""

from dataclasses import replace

from services.worker.domain.identity import Identity
from services.worker.ports import Coordinator, Report
from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.messages import Ack, LinkFault, ReceiptPosted, SessionFault, SignedText
from shared.domain.ids import Epoch
from shared.domain.receipt import read_receipt, sign_receipt
from tests.byzantine.seat_watch import Place
from tests.byzantine.signer_faults import OTHER_DIGEST


class HonestReports(Coordinator):
    """Passes everything on; a fault changes one kind of report at one seat."""

    def __init__(self, honest: Coordinator, identity: Identity, place: Place) -> None:
        self.honest = honest
        self.identity = identity
        self.place = place

    async def register(self, request: RegisterNode) -> Registered:
        return await self.honest.register(request)

    async def tell(self, report: Report) -> Ack:
        if isinstance(report, ReceiptPosted) and self.place.lies_at(report.lane, report.stage):
            await self.receipt(report)
            return Ack()
        return await self.honest.tell(report)

    async def receipt(self, report: ReceiptPosted) -> None:
        """Of the seat to lie at."""
        await self.honest.tell(report)


class DoubleSigned(HonestReports):
    """Signs two contents for one slot and shows both."""

    async def receipt(self, report: ReceiptPosted) -> None:
        honest = read_receipt(report.receipt.signed(), self.identity.key.public_key).receipt
        other = sign_receipt(self.identity.key, replace(honest, out_digest=OTHER_DIGEST)).signed
        self.place.tell(report.task_id, report.window, "signed a second receipt for the window")
        await self.honest.tell(report)
        await self.honest.tell(report.model_copy(update={"receipt": SignedText.of(other), "records": ()}))


class NoReceipts(HonestReports):
    """Does the work and never signs for it."""

    async def receipt(self, report: ReceiptPosted) -> None:
        self.place.tell(report.task_id, report.window, "kept its receipt to itself")


class OtherEpoch(HonestReports):
    """Signs for an epoch that is not the session's."""

    async def receipt(self, report: ReceiptPosted) -> None:
        honest = read_receipt(report.receipt.signed(), self.identity.key.public_key).receipt
        other = sign_receipt(self.identity.key, replace(honest, epoch=Epoch(honest.epoch + 1))).signed
        self.place.tell(report.task_id, report.window, "signed for another epoch")
        await self.honest.tell(report.model_copy(update={"receipt": SignedText.of(other)}))


class NotCanonical(HonestReports):
    """Sends receipts whose text says every field twice, and such with spaces."""

    async def receipt(self, report: ReceiptPosted) -> None:
        text = report.receipt.text
        twice = text.replace('{"', '{"window":0,"', 1) if report.window % 2 else text.replace(":", ": ")
        self.place.tell(report.task_id, report.window, "sent a receipt in another form than the canonical one")
        await self.honest.tell(
            report.model_copy(update={"receipt": SignedText(text=twice, signature=report.receipt.signature)})
        )


class FalseLinkFault(HonestReports):
    """Says of its neighbour, instead of its receipt, that the link to it broke."""

    async def receipt(self, report: ReceiptPosted) -> None:
        await self.honest.tell(report)
        neighbour = self.place.neighbour
        if neighbour is not None:
            self.place.tell(report.task_id, report.window, "accused its neighbour of breaking the link")
            await self.honest.tell(LinkFault(peer=neighbour, outgoing=True, reason="it sent me rubbish"))


class GivesUp(HonestReports):
    """Says that its engine failed, at the end of every window."""

    async def receipt(self, report: ReceiptPosted) -> None:
        self.place.tell(report.task_id, report.window, "pretended that its engine failed")
        await self.honest.tell(
            SessionFault(
                task_id=report.task_id,
                epoch=report.epoch,
                lane=report.lane,
                stage=report.stage,
                error_code="engine_fault",
                error="pretended",
            )
        )
