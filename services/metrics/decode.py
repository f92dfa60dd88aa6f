"""From an envelope back to an event of the catalogue, believing nothing."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from shared.contracts.metrics import EventEnvelope
from shared.events.catalogue import (
    EVENT_TYPES,
    BreakerChanged,
    BytesTransferred,
    CallRetried,
    ConnectionPoolRebuilt,
    Event,
    MessageReceived,
    MessageSent,
    StageLoaded,
    StepTimed,
)

CLAIMABLE = (
    StageLoaded,
    StepTimed,
    BytesTransferred,
    MessageSent,
    MessageReceived,
    BreakerChanged,
    CallRetried,
    ConnectionPoolRebuilt,
)
"""What a worker may tell. All else is for the control plane to know."""

_ADAPTERS: Mapping[str, TypeAdapter[Event]] = MappingProxyType(
    {name: TypeAdapter(kind) for name, kind in EVENT_TYPES.items()}
)
_FIELDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {name: frozenset(field.name for field in dataclasses.fields(kind)) for name, kind in EVENT_TYPES.items()}
)


def decode_event(envelope: EventEnvelope, *, is_trusted: bool) -> Event | None:
    """The event, or None when it is not in the catalogue, breaks its bounds, or is not the sender's to tell."""
    adapter = _ADAPTERS.get(envelope.type)
    if adapter is None or not _FIELDS[envelope.type].issuperset(envelope.data):
        return None
    if not is_trusted and not issubclass(EVENT_TYPES[envelope.type], CLAIMABLE):
        return None
    try:
        return adapter.validate_python(envelope.data)
    except ValidationError:
        return None
