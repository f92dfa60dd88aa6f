"""How long a seat had for a window, as the coordinator sees it: from when the one before it signed until it signs.

An auditor cannot sign sooner than it has computed, so by this it never seems faster than it is. It may seem slower: it
had to wait for its turn, or the one before it signed early and sent late. Of several windows the least counts.
"""

from collections import OrderedDict

from shared.domain.ids import Epoch, TaskId
from shared.domain.receipt import Slot

MAX_WINDOWS = 1_024


class WindowClock:
    """Keeps the windows signed for last."""

    def __init__(self) -> None:
        self._signed: OrderedDict[tuple[TaskId, Epoch, int], dict[tuple[int, int], float]] = OrderedDict()
        """When each (lane, stage) signed."""

    def signed(self, slot: Slot, *, num_stages: int, now_s: float) -> float | None:
        """Seconds that an auditor had at most for this window; None of lane 0, where it is not known, and for what was
        signed before: receipts may come twice.

        The first stage of an audit lane begins when the last one of lane 0 has signed.
        """
        window = slot.task_id, slot.epoch, slot.window
        times = self._signed.setdefault(window, {})
        self._signed.move_to_end(window)
        if len(self._signed) > MAX_WINDOWS:
            self._signed.popitem(last=False)
        if (slot.lane, slot.stage) in times:
            return None
        times[slot.lane, slot.stage] = now_s
        if slot.lane == 0:
            return None
        began_s = times.get((slot.lane, slot.stage - 1) if slot.stage else (0, num_stages - 1))
        return None if began_s is None else now_s - began_s
