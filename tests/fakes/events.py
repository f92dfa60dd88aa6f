"""A publisher that keeps what it was told."""

from typing import TypeVar

from shared.events.catalogue import Event
from shared.events.publisher import Publisher

E = TypeVar("E")


class RecordingPublisher(Publisher):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one type, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]
