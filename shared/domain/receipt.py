"""What a worker signs for each window it has computed, and what the coordinator signs to have it computed."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from shared.domain import canonical
from shared.domain.errors import InvalidInput
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.signing import Signed, SigningKey, digest_of, is_signed_by

RECEIPT = "receipt"
ASSIGNMENT = "assignment"
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_INT = 2**53
_MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class Slot:
    """A seat's window: a node that signs two contents for one slot convicts itself."""

    task_id: TaskId
    choice: int
    epoch: Epoch
    lane: int
    stage: int
    window: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """The signed core of a `WorkAssignment`: all that a receipt's content depends on."""

    v: int
    task_id: TaskId
    choice: int
    epoch: Epoch
    lane: int
    stage: int
    node_id: NodeId
    layer_start: int
    layer_end: int
    num_layers: int
    model_root: str
    numerics_hash: str
    sampler_hash: str
    num_prompt: int
    first_window: int
    first_row: int
    checkpoint_interval: int
    window_checkpoints: int
    prefix_digest: str
    """Chain of boundary 0 after the prefix: the ids the session begins with."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Rows [row_start, row_end) of one seat. No clock and no random value: honest work has one content."""

    v: int
    task_id: TaskId
    choice: int
    epoch: Epoch
    lane: int
    stage: int
    window: int
    layer_start: int
    layer_end: int
    row_start: int
    row_end: int
    model_root: str
    numerics_hash: str
    sampler_hash: str
    in_start: str
    """Chain values, hex: of the boundary below the stage before and after the window …"""
    in_digest: str
    out_start: str
    """… and of the boundary above it."""
    out_digest: str
    prev_receipt: str
    """Digest of this seat's receipt before in the epoch; of its signed assignment for the first."""
    node_id: NodeId

    @property
    def slot(self) -> Slot:
        return Slot(self.task_id, self.choice, self.epoch, self.lane, self.stage, self.window)


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    receipt: Receipt
    signed: Signed

    @property
    def digest(self) -> str:
        return digest_of(self.signed)


def sign_receipt(key: SigningKey, receipt: Receipt) -> SignedReceipt:
    return SignedReceipt(receipt, key.sign(RECEIPT, asdict(receipt)))


def read_receipt(signed: Signed, public_key: bytes) -> SignedReceipt:
    """Raises `InvalidInput` unless it is a receipt in canonical form, signed with that key and of that node."""
    receipt: Receipt = _read(RECEIPT, Receipt, signed.text)
    if not is_signed_by(public_key, signed):
        raise InvalidInput("a receipt with a wrong signature")
    return SignedReceipt(receipt, signed)


def sign_assignment(key: SigningKey, assignment: Assignment) -> Signed:
    return key.sign(ASSIGNMENT, asdict(assignment))


def read_assignment(signed: Signed, public_key: bytes) -> Assignment:
    """Raises `InvalidInput` unless it is an assignment in canonical form, signed with that key."""
    assignment: Assignment = _read(ASSIGNMENT, Assignment, signed.text)
    if not is_signed_by(public_key, signed):
        raise InvalidInput("an assignment with a wrong signature")
    return assignment


def _read(kind: str, cls: type[Any], text: bytes) -> Any:
    body = canonical.decode(kind, text)
    wanted = {field.name: field.type for field in fields(cls)}
    if body.keys() != wanted.keys():
        raise InvalidInput(f"the fields of this {kind} are not those of a {kind}")
    for name, value in body.items():
        is_number = isinstance(value, int)
        if is_number != (wanted[name] in {int, Epoch}):
            raise InvalidInput(f"{name} of a {kind} has a wrong type")
        if is_number and not 0 <= value < _MAX_INT:
            raise InvalidInput(f"{name} of a {kind} is out of range")
        if not is_number and len(value) > _MAX_TEXT:
            raise InvalidInput(f"{name} of a {kind} is too long")
        is_digest = name.endswith(("_digest", "_hash", "_start", "_receipt")) and not is_number
        if is_digest and not _HEX_DIGEST.fullmatch(value):
            raise InvalidInput(f"{name} of a {kind} is no digest")
    if body["v"] != 1:
        raise InvalidInput(f"a {kind} of version {body['v']}")
    return cls(**body)
