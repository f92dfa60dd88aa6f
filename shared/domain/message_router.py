"""Sends each message to the one handler of its type."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from shared.domain.errors import ProtocolViolation

Sender = TypeVar("Sender")
Reply = TypeVar("Reply")
Message = TypeVar("Message")

Handler = Callable[[Sender, Message], Awaitable[Reply]]


class MessageRouter(Generic[Sender, Message, Reply]):
    """Built once from a table; an unknown type is refused with a code, never ignored."""

    def __init__(self, handlers: Mapping[type, Callable[[Sender, Message], Awaitable[Reply]]]) -> None:
        self._handlers = dict(handlers)

    async def route(self, sender: Sender, message: Message) -> Reply:
        handler = self._handlers.get(type(message))
        if handler is None:
            raise ProtocolViolation(f"no handler for messages of type {type(message).__name__}")
        return await handler(sender, message)
