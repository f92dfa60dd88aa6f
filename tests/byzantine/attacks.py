"""The kinds of lie that a worker of the attack kit tells (verification.md section 15)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from services.worker.domain.identity import Identity
from services.worker.ports import Coordinator, ReceiptSigner
from tests.byzantine import link_faults, report_faults
from tests.byzantine.engine_faults import (
    Fault,
    Lazy,
    OtherToken,
    RarelyWrong,
    Silent,
    SkippedLayers,
    SkippedRows,
    WrongHidden,
)
from tests.byzantine.link_faults import LinkFault
from tests.byzantine.other_models import F16_CACHE, OtherModel
from tests.byzantine.roles import CELLS, STAGES, Cell
from tests.byzantine.seat_watch import Place
from tests.byzantine.signer_faults import BrokenChain, FalseInput, FalseOutput, NoSignature, OldReceipt

BEFORE_LAST = tuple(cell for cell in CELLS if cell.stage < STAGES - 1)
SLEEPS_TASKS = 4  # more than the first round of tasks has


@dataclass(frozen=True, slots=True)
class Attack:
    """A worker does all this at one seat, and is honest at every other."""

    says: str
    fault: Fault | None = None
    """In the engine."""
    make_signer: Callable[[Identity], ReceiptSigner] | None = None
    """None: it signs what it has computed."""
    is_convicted: bool = True
    """False: nothing proves it, the session goes on without the node."""
    other_model: OtherModel | None = None
    """What it computes with."""
    link_fault: LinkFault | None = None
    """On its link to the next seat."""
    wrap_coordinator: Callable[[Coordinator, Identity, Place], Coordinator] | None = None
    """What it tells the coordinator."""
    sleeps_tasks: int = 0
    """So many tasks of the seat are served honestly first."""
    cells: tuple[Cell, ...] = CELLS
    """Where the lie can be told."""


ATTACKS: Mapping[str, Attack] = {
    "wrong-hidden": Attack("computes every row a little wrong", WrongHidden()),
    "rarely-wrong": Attack("computes every 4th call a little wrong", RarelyWrong(4)),
    "sleeper": Attack(
        f"is honest for {SLEEPS_TASKS} tasks, then computes a little wrong", WrongHidden(), sleeps_tasks=SLEEPS_TASKS
    ),
    "skipped-layers": Attack("passes rows on without running its layers", SkippedLayers()),
    "skipped-rows": Attack("runs some rows as if they were others, and keeps a stale cache", SkippedRows()),
    "other-token": Attack("prefers the second best token", OtherToken()),
    "other-weights": Attack("runs Q4_0 weights for Q4_1", other_model=OtherModel(weights=GGMLQuantizationType.Q4_0)),
    "better-weights": Attack("runs Q8_0 weights for Q4_1", other_model=OtherModel(weights=GGMLQuantizationType.Q8_0)),
    "other-cache": Attack("keeps its cache in f16 for q8_0", other_model=OtherModel(settings=F16_CACHE)),
    "lazy": Attack("guesses when it is to replay", Lazy()),
    "false-output": Attack("signs another result than it computed", make_signer=FalseOutput),
    "false-input": Attack("claims to have been given other rows", make_signer=FalseInput),
    "equivocation": Attack(
        "sends other rows to the next stage than it signs",
        link_fault=link_faults.OtherRows(),
        cells=BEFORE_LAST,
    ),
    "unseen-equivocation": Attack(
        "sends other rows than it signs, but not through the coordinator",
        link_fault=link_faults.OtherRowsUnseen(),
        is_convicted=False,
        cells=BEFORE_LAST,
    ),
    "ring-lie": Attack(
        "sends other tokens around the ring than it drafts",
        link_fault=link_faults.OtherRows(),
        is_convicted=False,
        cells=(Cell(STAGES - 1, "executor"),),
    ),
    "old-receipt": Attack("gives an old receipt again", make_signer=OldReceipt, is_convicted=False),
    "other-epoch": Attack("signs for another epoch", wrap_coordinator=report_faults.OtherEpoch, is_convicted=False),
    "broken-chain": Attack("signs what does not continue its last receipt", make_signer=BrokenChain),
    "double-signing": Attack("signs two results for one window", wrap_coordinator=report_faults.DoubleSigned),
    "no-signature": Attack("sends receipts without a valid signature", make_signer=NoSignature, is_convicted=False),
    "not-canonical": Attack(
        "sends receipts in another form", wrap_coordinator=report_faults.NotCanonical, is_convicted=False
    ),
    "false-link-fault": Attack(
        "accuses its neighbour of breaking links", wrap_coordinator=report_faults.FalseLinkFault, is_convicted=False
    ),
    "gives-up": Attack("pretends to fail", wrap_coordinator=report_faults.GivesUp, is_convicted=False),
    "no-receipts": Attack("works and signs nothing", wrap_coordinator=report_faults.NoReceipts, is_convicted=False),
    "silent": Attack("takes seats and computes nothing", Silent(), is_convicted=False),
    "stops-early": Attack(
        "stops sending before a window ends", link_fault=link_faults.StopsEarly(), is_convicted=False
    ),
    "slow-loris": Attack("sends byte by byte", link_fault=link_faults.Drip(), is_convicted=False),
    "repeated-rows": Attack("sends rows twice and out of order", link_fault=link_faults.Repeated(), is_convicted=False),
    "not-finite": Attack("sends rows of NaN", link_fault=link_faults.NotFinite(), is_convicted=False),
    "truncated-frames": Attack("sends half frames", link_fault=link_faults.Truncated(), is_convicted=False),
    "frame-bomb": Attack("announces frames of gigabytes", link_fault=link_faults.FrameBomb(), is_convicted=False),
}
