"""The checker finds every kind of bad history that is planted, and nothing in a good one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.checker import check
from tests.chaos.history import Asked, History, Reading, Story, TaskEnd, Way

RIGHT = (7, 8, 9, 10)


def oracle(asked: Asked) -> tuple[int, ...]:
    return RIGHT[: asked.max_tokens]


def story(way: Way, seed: int = 1, **changes: object) -> Story:
    told = Story(Asked(way, (3, 4), 4, 0.0, seed), accepted=[f"task-{seed}"])
    for name, value in changes.items():
        setattr(told, name, value)
    return told


def task(seed: int = 1, **changes: object) -> TaskEnd:
    end = TaskEnd(
        task_id=f"task-{seed}",
        seed=seed,
        prompt_ids=(3, 4),
        max_tokens=4,
        state="completed",
        error="",
        token_ids=RIGHT,
        text="abcd",
        commits=((0, RIGHT[:3]), (3, RIGHT[3:])),
        ends=("completed",),
    )
    return replace(end, **changes)  # type: ignore[arg-type]  # named by the tests below


def promises(stories: list[Story], tasks: list[TaskEnd]) -> set[str]:
    return {violation.promise for violation in check(History(tuple(stories), tuple(tasks)), oracle).violations}


def cut(count: int, state: str, *, error: str = "") -> TaskEnd:
    """A task that ended early."""
    kept = RIGHT[:count]
    return task(state=state, ends=(state,), token_ids=kept, commits=((0, kept),), text="abcd"[:count], error=error)


GOOD: list[tuple[Story, TaskEnd]] = [
    (story(Way.POLL, seen_states=["completed"]), task()),
    (story(Way.FOLLOW, readings=[Reading([7, 8]), Reading([9, 10], end="completed")]), task()),
    (story(Way.STREAM, readings=[Reading(text="ab"), Reading(text="abcd", end="completed")]), task()),
    (story(Way.ONCE, readings=[Reading(text="a")], has_left=True), cut(2, "cancelled")),
    (story(Way.CANCEL, cancel_asked=True, cancel_accepted=True, readings=[Reading([7])]), cut(2, "cancelled")),
    (story(Way.CANCEL, cancel_asked=True), task()),
    (story(Way.POLL, seen_states=["failed"]), cut(2, "failed", error="deadline_exceeded: too late")),
    (story(Way.TWICE, accepted=["task-1", "task-1"]), task()),
]


@pytest.mark.parametrize(("told", "end"), GOOD, ids=[f"{i} {told.asked.way}" for i, (told, _) in enumerate(GOOD)])
def test_good_histories_break_no_promise(told: Story, end: TaskEnd) -> None:
    assert promises([told], [end]) == set()


def test_a_request_that_was_never_accepted_is_no_loss() -> None:
    findings = check(History((story(Way.POLL, accepted=[], refusal="503"),), ()), oracle)
    assert findings.violations == ()
    assert findings.refusals == {"503": 1}


PLANTED: list[tuple[str, Callable[[], tuple[list[Story], list[TaskEnd]]]]] = [
    ("nothing accepted is lost", lambda: ([story(Way.POLL)], [])),
    ("every task ends", lambda: ([story(Way.POLL)], [task(state="computing", ends=())])),
    ("one terminal state", lambda: ([story(Way.POLL)], [task(ends=("failed", "completed"))])),
    ("one terminal state", lambda: ([story(Way.POLL)], [task(ends=())])),
    ("who fails says why", lambda: ([story(Way.POLL)], [cut(1, "failed")])),
    (
        "nothing is committed twice",
        lambda: ([story(Way.POLL)], [task(commits=((0, RIGHT[:3]), (2, RIGHT[2:])))]),
    ),
    ("nothing is committed twice", lambda: ([story(Way.POLL)], [task(commits=((0, RIGHT[:2]), (3, RIGHT[3:])))])),
    ("the stream is the commit log", lambda: ([story(Way.POLL)], [task(commits=((0, RIGHT[:3]),))])),
    (
        "no wrong token",
        lambda: ([story(Way.POLL)], [task(token_ids=(7, 8, 9, 11), commits=((0, (7, 8, 9, 11)),))]),
    ),
    (
        "no wrong token",
        lambda: ([story(Way.POLL)], [task(token_ids=(*RIGHT, 11), commits=((0, (*RIGHT, 11)),))]),
    ),
    (
        "no wrong token",
        lambda: (
            [story(Way.CANCEL, cancel_asked=True)],
            [task(state="cancelled", ends=("cancelled",), token_ids=(8,), commits=((0, (8,)),), text="b")],
        ),
    ),
    ("whole answers", lambda: ([story(Way.POLL)], [cut(2, "completed")])),
    ("nobody else cancels", lambda: ([story(Way.POLL)], [cut(2, "cancelled")])),
    ("what was asked is what is computed", lambda: ([story(Way.POLL)], [task(prompt_ids=(3,))])),
    ("no task out of nowhere", lambda: ([], [task()])),
    (
        "one key, one task",
        lambda: ([story(Way.TWICE, accepted=["task-1", "other"])], [task(), replace(task(), task_id="other")]),
    ),
    ("one key, one task", lambda: ([story(Way.POLL)], [task(), replace(task(), task_id="other")])),
    ("every client hears the end", lambda: ([story(Way.POLL, gave_up="silence")], [task()])),
    ("an end stays", lambda: ([story(Way.POLL, seen_states=["failed"])], [task()])),
    ("an end stays", lambda: ([story(Way.STREAM, readings=[Reading(text="ab", end="failed")])], [task()])),
    (
        "a cancel that was accepted holds",
        lambda: ([story(Way.CANCEL, cancel_asked=True, cancel_accepted=True)], [task()]),
    ),
    ("clients see what is committed", lambda: ([story(Way.FOLLOW, readings=[Reading([7, 9])])], [task()])),
    (
        "clients see what is committed",
        lambda: ([story(Way.FOLLOW, readings=[Reading([7, 8]), Reading([8, 9])])], [task()]),
    ),
    ("clients see what is committed", lambda: ([story(Way.STREAM, readings=[Reading(text="b")])], [task()])),
    (
        "a stream that ended is whole",
        lambda: ([story(Way.FOLLOW, readings=[Reading([7, 8], end="completed")])], [task()]),
    ),
    (
        "a stream that ended is whole",
        lambda: ([story(Way.ONCE, readings=[Reading(text="abc", end="completed")])], [task()]),
    ),
]


@pytest.mark.parametrize(("promise", "plant"), PLANTED, ids=[f"{i} {name}" for i, (name, _) in enumerate(PLANTED)])
def test_a_planted_bad_history_is_found(promise: str, plant: Callable[[], tuple[list[Story], list[TaskEnd]]]) -> None:
    assert promise in promises(*plant())


def test_more_than_one_failed_task_in_a_hundred_is_too_many() -> None:
    stories = [story(Way.POLL, seed) for seed in range(100)]
    tasks = [task(seed) for seed in range(98)]
    failed = [replace(cut(1, "failed", error="x: y"), seed=seed, task_id=f"task-{seed}") for seed in (98, 99)]
    assert promises(stories, [*tasks, failed[0], task(99)]) == set()
    assert promises(stories, [*tasks, *failed]) == {"at most 1 % fail"}
