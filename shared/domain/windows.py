"""Which rows are verified and committed together (verification.md section 2)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """Rows [row_start, row_end) of a session; window 0 is its prompt."""

    index: int
    row_start: int
    row_end: int

    def closed_at(self, row_end: int) -> "Window":
        """The same window, ended early."""
        return Window(self.index, self.row_start, min(self.row_end, row_end))


@dataclass(frozen=True, slots=True)
class WindowSchedule:
    """The windows of one epoch. The first after the prompt, or after what was committed before, are small, so that the
    first verified tokens come early: 1 checkpoint, 2, then `window_checkpoints`."""

    num_prompt: int
    first_index: int
    """Of the epoch's first window: 0, or one more than the last that was committed."""
    first_row: int
    """Where it starts: 0, or the rows committed before."""
    checkpoint_interval: int
    """Rows."""
    window_checkpoints: int

    def window(self, index: int) -> Window:
        """Raises `ValueError` for windows before this epoch."""
        if index < self.first_index:
            raise ValueError(f"window {index} is before window {self.first_index}, the epoch's first")
        row, place = self.first_row, index - self.first_index
        if self.first_index == 0:
            if place == 0:
                return Window(0, 0, self.num_prompt)
            row, place = self.num_prompt, place - 1
        small = (min(1, self.window_checkpoints), min(2, self.window_checkpoints))
        for checkpoints in small[:place]:
            row += checkpoints * self.checkpoint_interval
        row += max(0, place - len(small)) * self.window_checkpoints * self.checkpoint_interval
        checkpoints = small[place] if place < len(small) else self.window_checkpoints
        return Window(index, row, row + checkpoints * self.checkpoint_interval)

    def window_of(self, row: int) -> Window:
        """The window that holds `row`. Raises `ValueError` for rows before this epoch."""
        index = self.first_index
        while (window := self.window(index)).row_end <= row:
            index += 1
        if row < window.row_start:
            raise ValueError(f"row {row} is before this epoch")
        return window
