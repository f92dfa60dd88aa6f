"""What the clients of a chaos run did and saw, and what the registry holds at its end. Pure data."""

from dataclasses import dataclass, field
from enum import StrEnum


class Way(StrEnum):
    """How a client uses the gateway."""

    POLL = "poll"
    """A task, and its state asked for until it has ended."""
    FOLLOW = "follow"
    """A task and its events, resumed after the last one seen whenever the connection breaks."""
    STREAM = "stream"
    """An OpenAI stream with an idempotency key: asked for again, with the same key, whenever it breaks."""
    ONCE = "once"
    """An OpenAI stream without a key: when it breaks, its client is gone."""
    CANCEL = "cancel"
    """A task that its client cancels after some tokens."""
    TWICE = "twice"
    """A task sent twice at once with one idempotency key, then polled."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. No two of a run have the same `seed`: the registry's tasks are known by it."""

    way: Way
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


@dataclass(slots=True)
class Reading:
    """One connection on which an answer was read."""

    token_ids: list[int] = field(default_factory=list)
    """Of event streams, whose clients see ids; they go on where the client's last reading stopped."""
    text: str = ""
    """Of OpenAI streams, from the beginning of the answer."""
    end: str | None = None
    """The terminal state that was told; None: the connection broke before."""


@dataclass(slots=True)
class Story:
    """What one client did and saw."""

    asked: Asked
    accepted: list[str] = field(default_factory=list)
    """Task ids that the gateway gave; one and the same, unless something is wrong."""
    readings: list[Reading] = field(default_factory=list)
    seen_states: list[str] = field(default_factory=list)
    """Terminal states that polls told."""
    cancel_accepted: bool = False
    cancel_asked: bool = False
    has_left: bool = False
    """The client's only connection broke, or it never learnt what became of its request: its task may be cancelled."""
    refusal: str = ""
    """Why the request was given up without having been accepted."""
    gave_up: str = ""
    """Why an accepted task was not followed to its end."""

    @property
    def token_ids(self) -> list[int]:
        """Of all readings of an event stream together."""
        return [token_id for reading in self.readings for token_id in reading.token_ids]


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """A task in the registry after the run."""

    task_id: str
    seed: int
    prompt_ids: tuple[int, ...]
    max_tokens: int
    state: str
    error: str
    """Code and message; empty when there is none."""
    token_ids: tuple[int, ...]
    """Committed."""
    text: str
    """Of the answer, as the gateway gives it when the run is over."""
    commits: tuple[tuple[int, tuple[int, ...]], ...]
    """Of the task's event stream, in order: index of the first token, tokens."""
    ends: tuple[str, ...]
    """Terminal states in the task's event stream."""


@dataclass(frozen=True, slots=True)
class History:
    stories: tuple[Story, ...]
    tasks: tuple[TaskEnd, ...]
