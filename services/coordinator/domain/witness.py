"""A link that the coordinator carries itself in the second try of a link fault, to see what passes over it."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.domain.chain import RowChain, chain_start
from shared.domain.errors import ProtocolViolation
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.passage import Passage
from shared.domain.plan import Partition
from shared.domain.window_check import Finding
from shared.domain.windows import Window


@dataclass(frozen=True, slots=True)
class Hop:
    """The way from one stage of a lane to the next."""

    lane: int
    stage: int
    """Of the receiver; not 0."""
    sender: NodeId
    receiver: NodeId


def hop_of(fault: Finding, lanes: Sequence[Sequence[Partition]]) -> Hop | None:
    """Where `lanes` have the two of a link fault side by side again, in the lane and at the stage where it was.

    None: they do not. Also for the ring's way back, on which nothing passes in a replay: its ids are the coordinator's.
    """
    sender, receiver = (receipt.receipt for receipt in fault.receipts)
    lane, stage = receiver.lane, receiver.stage
    if stage == 0 or lane >= len(lanes) or stage >= len(lanes[lane]):
        return None
    before, at = lanes[lane][stage - 1], lanes[lane][stage]
    is_again = (before.node_id, at.node_id) == (sender.node_id, receiver.node_id)
    return Hop(lane, stage, before.node_id, at.node_id) if is_again else None


class Witness:
    """Counts the rows that pass, each before it is passed on."""

    def __init__(
        self,
        hop: Hop,
        *,
        task_id: TaskId,
        epoch: Epoch,
        boundary: int,
        model_root: str,
        numerics_hash: str,
        window: Window,
    ) -> None:
        """`boundary`: the layer above it; `window`: the one to be judged, up to which rows pass."""
        self.hop, self.task_id, self.epoch = hop, task_id, epoch
        self._boundary, self._model_root, self._numerics_hash = boundary, model_root, numerics_hash
        self._window = window
        self._chain = RowChain(chain_start(model_root, boundary, numerics_hash=numerics_hash), row=0)

    @property
    def is_complete(self) -> bool:
        return self._chain.row >= self._window.row_end

    def take(self, first: int, rows: Sequence[bytes]) -> None:
        """Rows [first, first + len(rows)) are about to pass. Raises `ProtocolViolation` for any but the next ones of
        the window and of what goes before it."""
        if first != self._chain.row or first + len(rows) > self._window.row_end:
            raise ProtocolViolation(f"rows {first} to {first + len(rows)} after {self._chain.row} rows")
        self._chain.extend(rows)
        self._chain.forget_before(min(self._window.row_start, self._chain.row))

    def passage(self) -> Passage:
        """What has passed so far."""
        row_start = min(self._window.row_start, self._chain.row)
        return Passage(
            v=1,
            task_id=self.task_id,
            choice=0,
            epoch=self.epoch,
            lane=self.hop.lane,
            stage=self.hop.stage,
            boundary=self._boundary,
            model_root=self._model_root,
            numerics_hash=self._numerics_hash,
            sender=self.hop.sender,
            receiver=self.hop.receiver,
            row_start=row_start,
            row_end=self._chain.row,
            start_digest=self._chain.at(row_start).hex(),
            end_digest=self._chain.at(self._chain.row).hex(),
        )
