"""The seats a liar may lie at, and which of four equal nodes gets them."""

from collections.abc import Mapping
from dataclasses import dataclass

STAGES = 3
ROLES: Mapping[str, int] = {"executor": 0, "auditor": 1}
"""Name -> lane."""
LIES = "lies.jsonl"
"""In the liar's data folder: one line for each lie."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One place in the table of attacks."""

    stage: int
    role: str

    def __str__(self) -> str:
        return f"{self.role} of stage {self.stage}"


CELLS = tuple(Cell(stage, role) for role in ROLES for stage in range(STAGES))
RANKS: Mapping[Cell, int] = {
    Cell(0, "executor"): 0,
    Cell(1, "executor"): 1,
    Cell(2, "executor"): 2,
    Cell(0, "auditor"): 3,
    Cell(1, "auditor"): 0,
    Cell(2, "auditor"): 1,
}
"""Cell -> place in the order of four ids. Nodes that are equal in all that counts are seated by their ids: lane 0 takes
them in order, and lane 1 takes the one that is left first (services/partitioner/domain/lanes.py)."""
