"""Where a liar sits, learned from its own assignments: it lies at one place only, and writes down each lie it tells."""

import json
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.worker.ports import ReceiptSigner
from shared.contracts.messages import StageRef, WorkAssignment, to_worker
from shared.domain.ids import NodeId
from shared.domain.plan import LayerRange
from shared.domain.receipt import Receipt
from shared.domain.signing import Signed


class Place:
    """The seat at which a worker lies, and what it told there. The engine's thread and the event loop both ask."""

    def __init__(self, *, lane: int, stage: int, sleeps_tasks: int, told: Path) -> None:
        """`sleeps_tasks`: so many tasks of that seat are served honestly first. `told`: gets a line for each lie."""
        self.lane = lane
        self.stage = stage
        self._sleeps_tasks = sleeps_tasks
        self._told = told
        self._tasks: set[str] = set()
        self._newest: dict[LayerRange, tuple[int, int]] = {}
        self._unsigned_lies = 0
        self._num_stages = 1
        self.neighbour: NodeId | None = None
        """Whom the seat sends to."""

    def assigned(self, order: WorkAssignment) -> None:
        self._newest[order.stage_ref.layers] = (order.lane, order.stage)
        if self.holds(order.lane, order.stage):
            self._tasks.add(order.task_id)
            self._num_stages = order.num_stages
            self.neighbour = None if order.next is None else order.next.node_id

    def holds(self, lane: int, stage: int) -> bool:
        return (lane, stage) == (self.lane, self.stage)

    def lies_at(self, lane: int, stage: int) -> bool:
        return self.holds(lane, stage) and len(self._tasks) > self._sleeps_tasks

    def lies_in(self, ref: StageRef) -> bool:
        """Whether the latest seat over these layers is the one to lie at: rows do not say which seat they are of."""
        return self.lies_at(*self._newest.get(ref.layers, (-1, -1)))

    def lies_to(self, lane: int, stage: int) -> bool:
        """Whether what goes to that seat comes from the one to lie at."""
        return stage == (self.stage + 1) % self._num_stages and self.lies_at(lane, self.stage)

    def computed_falsely(self) -> None:
        """The next receipt of the seat covers a false row."""
        self._unsigned_lies += 1

    def signed(self, receipt: Receipt) -> None:
        if self._unsigned_lies:
            self._unsigned_lies = 0
            self.tell(receipt.task_id, receipt.window, "signed what it computed falsely")

    def tell(self, task_id: str, window: int, what: str) -> None:
        """A lie is told now."""
        with self._told.open("a") as file:
            file.write(json.dumps({"task_id": task_id, "window": window, "what": what}) + "\n")


class SeatWatch:
    """ASGI middleware: reads the worker's orders on their way in."""

    def __init__(self, app: ASGIApp, place: Place) -> None:
        self._app = app
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/messages":
            await self._app(scope, receive, send)
            return
        body = bytearray()

        async def read() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    self._note(bytes(body))
            return message

        await self._app(scope, read, send)

    def _note(self, body: bytes) -> None:
        order = to_worker.validate_json(body)
        if isinstance(order, WorkAssignment):
            self._place.assigned(order)


class SeatSigner(ReceiptSigner):
    """Signs honestly but for the windows of one seat."""

    def __init__(self, honest: ReceiptSigner, lying: ReceiptSigner | None, place: Place) -> None:
        """`lying` None: the lie, if there is one, is in what was computed."""
        self._honest = honest
        self._lying = lying
        self._place = place

    def sign(self, receipt: Receipt) -> Signed:
        if not self._place.lies_at(receipt.lane, receipt.stage):
            return self._honest.sign(receipt)
        self._place.signed(receipt)
        if self._lying is None:
            return self._honest.sign(receipt)
        signed = self._lying.sign(receipt)
        if signed != self._honest.sign(receipt):
            self._place.tell(receipt.task_id, receipt.window, "signed something else")
        return signed
