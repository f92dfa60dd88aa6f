"""A checkable answer as JSON: `GET /v1/tasks/{id}/receipt`, and the file that `butterfly receipts verify` reads."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from shared.contracts.base import Contract
from shared.contracts.messages import MAX_PREFIX_TOKENS, Facts, SignedText
from shared.domain.bundle import Bundle
from shared.domain.ids import Epoch, ModelId, NodeId, TaskId
from shared.domain.numerics import Profile
from shared.domain.plan import LayerRange
from shared.domain.tail_audit import TailAudit
from shared.domain.tail_state import TailState
from shared.domain.task import FinishReason, SamplerParams, TokenRecord, Verification
from shared.domain.window_entry import WindowEntry

MAX_RECEIPTS = 65_536
MAX_WINDOWS = 65_536

_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Ids = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(max_length=MAX_PREFIX_TOKENS)]


class EntryBody(Contract):
    """A committed window (shared.domain.window_entry)."""

    v: Literal[1] = 1
    epoch: Epoch
    window: int = Field(ge=0)
    row_start: int = Field(ge=0)
    row_end: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    mode: Verification
    f: int = Field(ge=0)
    numerics_class: str = Field(max_length=256)
    orders: Annotated[tuple[SignedText, ...], Field(max_length=MAX_RECEIPTS)]
    facts: Annotated[tuple[tuple[LayerRange, Facts], ...], Field(max_length=MAX_RECEIPTS)] = ()
    """Kept, and not shown: nobody has signed them."""
    receipts: Annotated[tuple[SignedText, ...], Field(max_length=MAX_RECEIPTS)]
    keys: Annotated[dict[NodeId, _Key], Field(max_length=MAX_RECEIPTS)]
    records: Annotated[tuple[TokenRecord, ...], Field(max_length=MAX_PREFIX_TOKENS)]
    root: _Key
    coordinator_key: _Key
    commit: SignedText

    @classmethod
    def of(cls, entry: WindowEntry) -> "EntryBody":
        return cls(
            epoch=entry.epoch,
            window=entry.window,
            row_start=entry.row_start,
            row_end=entry.row_end,
            num_tokens=entry.num_tokens,
            mode=entry.mode,
            f=entry.f,
            numerics_class=entry.numerics_class,
            orders=tuple(map(SignedText.of, entry.orders)),
            facts=entry.facts,
            receipts=tuple(map(SignedText.of, entry.receipts)),
            keys={node_id: key.hex() for node_id, key in entry.keys.items()},
            records=entry.records,
            root=entry.root,
            coordinator_key=entry.coordinator_key.hex(),
            commit=SignedText.of(entry.commit),
        )

    def entry(self) -> WindowEntry:
        return WindowEntry(
            epoch=self.epoch,
            window=self.window,
            row_start=self.row_start,
            row_end=self.row_end,
            num_tokens=self.num_tokens,
            mode=self.mode,
            f=self.f,
            numerics_class=self.numerics_class,
            orders=tuple(order.signed() for order in self.orders),
            facts=self.facts,
            receipts=tuple(receipt.signed() for receipt in self.receipts),
            keys={node_id: bytes.fromhex(key) for node_id, key in self.keys.items()},
            records=self.records,
            root=self.root,
            coordinator_key=bytes.fromhex(self.coordinator_key),
            commit=self.commit.signed(),
        )


class TailBody(Contract):
    """What a tail audit signed (shared.domain.tail_audit)."""

    epoch: Epoch
    orders: Annotated[tuple[SignedText, ...], Field(max_length=MAX_RECEIPTS)]
    receipts: Annotated[tuple[SignedText, ...], Field(max_length=MAX_RECEIPTS)]
    keys: Annotated[dict[NodeId, _Key], Field(max_length=MAX_RECEIPTS)]

    @classmethod
    def of(cls, audit: TailAudit) -> "TailBody":
        return cls(
            epoch=audit.epoch,
            orders=tuple(map(SignedText.of, audit.orders)),
            receipts=tuple(map(SignedText.of, audit.receipts)),
            keys={node_id: key.hex() for node_id, key in audit.keys.items()},
        )

    def audit(self) -> TailAudit:
        return TailAudit(
            epoch=self.epoch,
            orders=tuple(order.signed() for order in self.orders),
            receipts=tuple(receipt.signed() for receipt in self.receipts),
            keys={node_id: bytes.fromhex(key) for node_id, key in self.keys.items()},
        )


class BundleBody(Contract):
    """A whole answer with its proof (shared.domain.bundle)."""

    object: Literal["receipt"] = "receipt"
    v: Literal[1] = 1
    task_id: TaskId
    choice: int = 0
    model: ModelId
    profile: Profile
    mode: Verification
    f: int = Field(ge=0)
    complete: bool
    """False: the task still runs, or ended early; what is committed so far."""
    finish_reason: FinishReason | None
    sampler: SamplerParams
    prompt_ids: _Ids
    answer_ids: _Ids
    entries: Annotated[tuple[EntryBody, ...], Field(max_length=MAX_WINDOWS)]
    tail_audit: TailState = TailState.NONE
    """`failed`: the answer is revoked."""
    tail: TailBody | None = None
    """Once it has passed or failed."""

    @classmethod
    def of(cls, bundle: Bundle) -> "BundleBody":
        return cls(
            task_id=bundle.task_id,
            choice=bundle.choice,
            model=bundle.model_id,
            profile=bundle.profile,
            mode=bundle.mode,
            f=bundle.f,
            complete=bundle.complete,
            finish_reason=bundle.finish_reason,
            sampler=bundle.sampler,
            prompt_ids=bundle.prompt_ids,
            answer_ids=bundle.answer_ids,
            entries=tuple(EntryBody.of(replace(entry, facts=())) for entry in bundle.entries),
            tail_audit=bundle.tail_state,
            tail=None if bundle.tail is None else TailBody.of(bundle.tail),
        )

    def bundle(self) -> Bundle:
        return Bundle(
            task_id=self.task_id,
            choice=self.choice,
            model_id=self.model,
            profile=self.profile,
            mode=self.mode,
            f=self.f,
            complete=self.complete,
            finish_reason=self.finish_reason,
            sampler=self.sampler,
            prompt_ids=self.prompt_ids,
            answer_ids=self.answer_ids,
            entries=tuple(entry.entry() for entry in self.entries),
            tail_state=self.tail_audit,
            tail=None if self.tail is None else self.tail.audit(),
        )
