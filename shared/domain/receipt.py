"""What a worker signs for each window it has computed, and what the coordinator signs to have it computed."""

import hashlib
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from shared.domain import canonical
from shared.domain.errors import InvalidInput
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.signing import Signed, SigningKey, digest_of, is_signed_by, node_id_of

RECEIPT = "receipt"
ASSIGNMENT = "assignment"
COMMITMENT = "commit"
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
    profile: str
    """What the session's stages promise: a `shared.domain.numerics.Profile`."""
    row_class: int
    """Most rows that a call with rows after the prompt may have, or `ANY_ROWS` (shared.domain.numerics): on some
    stages the bits depend on it."""
    prefix_digest: str
    """Chain of boundary 0 after the prefix: the ids the session begins with."""
    sink_start: str
    """Chain of sample records before the epoch's first one: that of the last stage goes on from here."""


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


@dataclass(frozen=True, slots=True)
class Commitment:
    """What the coordinator signs when it commits a window."""

    v: int
    task_id: TaskId
    choice: int
    epoch: Epoch
    window: int
    row_start: int
    row_end: int
    ids_digest: str
    """Of the prompt's and all generated ids up to row `row_end`, that row included (see `ids_digest`)."""
    root: str
    """Merkle root of the window's receipts (`shared.domain.window_check.merkle_root`), by lane, then stage."""


def sign_receipt(key: SigningKey, receipt: Receipt) -> SignedReceipt:
    return SignedReceipt(receipt, key.sign(RECEIPT, canonical.fields_of(receipt)))


def read_receipt(signed: Signed, public_key: bytes) -> SignedReceipt:
    """Raises `InvalidInput` unless it is a receipt in canonical form, signed with that key and of that node."""
    receipt: Receipt = _read(RECEIPT, Receipt, signed.text)
    if receipt.node_id != node_id_of(public_key):
        raise InvalidInput("a receipt of another node")
    if not is_signed_by(public_key, signed):
        raise InvalidInput("a receipt with a wrong signature")
    return SignedReceipt(receipt, signed)


def kept_receipt(signed: Signed) -> SignedReceipt:
    """One that was checked before it was kept, by whoever reads it now. Raises `InvalidInput` for what is none."""
    return SignedReceipt(_read(RECEIPT, Receipt, signed.text), signed)


def sign_assignment(key: SigningKey, assignment: Assignment) -> Signed:
    return key.sign(ASSIGNMENT, canonical.fields_of(assignment))


def read_assignment(signed: Signed, public_key: bytes) -> Assignment:
    """Raises `InvalidInput` unless it is an assignment in canonical form, signed with that key."""
    assignment: Assignment = _read(ASSIGNMENT, Assignment, signed.text)
    if not is_signed_by(public_key, signed):
        raise InvalidInput("an assignment with a wrong signature")
    return assignment


def sign_commitment(key: SigningKey, commitment: Commitment) -> Signed:
    return key.sign(COMMITMENT, canonical.fields_of(commitment))


def read_commitment(signed: Signed, public_key: bytes) -> Commitment:
    """Raises `InvalidInput` unless it is a commitment in canonical form, signed with that key."""
    commitment: Commitment = _read(COMMITMENT, Commitment, signed.text)
    if not is_signed_by(public_key, signed):
        raise InvalidInput("a commitment with a wrong signature")
    return commitment


def ids_digest(ids: Sequence[int]) -> str:
    """Names token ids, in hex."""
    packed = struct.pack(f"<{len(ids)}I", *ids)
    return hashlib.blake2b(packed, digest_size=32, person=b"bfly/ids/1").hexdigest()


def _read(kind: str, cls: type[Any], text: bytes) -> Any:
    body = canonical.decode(kind, text)
    wrongs = _wrongs(cls)  # type: ignore[arg-type]  # a class can be hashed
    if body.keys() != wrongs.keys():
        raise InvalidInput(f"the fields of this {kind} are not those of a {kind}")
    for name, value in body.items():
        if wrong := wrongs[name](value):
            raise InvalidInput(f"{name} of a {kind} {wrong}")
    if body["v"] != 1:
        raise InvalidInput(f"a {kind} of version {body['v']}")
    return cls(**body)


@cache
def _wrongs(cls: type[Any]) -> Mapping[str, Callable[[object], str]]:
    """By field: what is wrong with a value, "" if nothing is."""

    def of(name: str, wanted: object) -> Callable[[object], str]:
        if wanted in {int, Epoch}:
            return _wrong_number
        return _wrong_digest if name.endswith(("_digest", "_hash", "_start", "_receipt")) else _wrong_text

    return {field.name: of(field.name, field.type) for field in fields(cls)}


def _wrong_number(value: object) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        return "has a wrong type"
    return "" if 0 <= value < _MAX_INT else "is out of range"


def _wrong_text(value: object) -> str:
    if not isinstance(value, str):
        return "has a wrong type"
    return "is too long" if len(value) > _MAX_TEXT else ""


def _wrong_digest(value: object) -> str:
    if wrong := _wrong_text(value):
        return wrong
    return "" if _HEX_DIGEST.fullmatch(str(value)) else "is no digest"
