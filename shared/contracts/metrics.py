"""HTTP bodies of the metrics service. Workers post here too, so every size has a bound."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

MAX_BATCH_EVENTS = 500

ShortText = Annotated[str, StringConstraints(strict=True, max_length=256)]
WholeNumber = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
Number = Annotated[FiniteFloat, Field(strict=True)]
Names = Annotated[tuple[ShortText, ...], Field(max_length=256)]
EventValue = Annotated[bool, Field(strict=True)] | WholeNumber | Number | ShortText | Names | None


class EventEnvelope(BaseModel):
    """One event as it travels. `data` holds the fields of the catalogue's class named by `type`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]
    time: Annotated[FiniteFloat, Field(ge=0, le=1e11)]
    """Seconds since the Unix epoch, by the clock of the source."""
    type: ShortText
    source: ShortText
    """Name of the service, or id of the node, that says so."""
    subject: ShortText
    data: Annotated[dict[ShortText, EventValue], Field(max_length=16)]


class EventBatch(BaseModel):
    """What a publisher sends at once. An empty batch only announces the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: ShortText
    address: ShortText = ""
    """host:port where the source serves its own /metrics; empty: nowhere."""
    dropped_total: Annotated[int, Field(strict=True, ge=0, le=2**53)] = 0
    """Events this source has dropped since it started."""
    events: Annotated[tuple[EventEnvelope, ...], Field(max_length=MAX_BATCH_EVENTS)] = ()
