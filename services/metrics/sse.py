"""Server-sent events of the event stream."""

from services.metrics.broadcast import Bye, Gap, Item, Silence
from shared.contracts.metrics import EventEnvelope


def to_sse(item: Item) -> str:
    """One event of the stream; silence is a comment, which keeps connections open."""
    match item:
        case EventEnvelope():
            return f"id: {_one_line(item.id)}\nevent: {item.type}\ndata: {item.model_dump_json()}\n\n"
        case Gap(missed=missed):
            return f'event: gap\ndata: {{"missed": {missed}}}\n\n'
        case Silence():
            return ": keep-alive\n\n"
        case Bye():
            return "event: bye\ndata: {}\n\n"


def _one_line(text: str) -> str:
    """Ids come from workers too: a line break would forge an event."""
    return "".join(character for character in text if character.isprintable())
