"""Holds the history of a chaos run against what was promised. Pure: it reads no clock and asks nobody."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.history import Asked, History, Story, TaskEnd, Way

TERMINAL = frozenset({"completed", "failed", "cancelled"})
MAX_FAILED = 0.01
"""Share of the accepted tasks; one task is always allowed, or short runs could allow none."""

Oracle = Callable[[Asked], Sequence[int]]
"""The right tokens of a request, all of them."""


@dataclass(frozen=True, slots=True)
class Violation:
    promise: str
    detail: str


@dataclass(frozen=True, slots=True)
class Findings:
    violations: tuple[Violation, ...]
    states: Counter[str]
    """Of the accepted tasks."""
    failures: Counter[str]
    """By reason."""
    refusals: Counter[str]
    """Why requests were never accepted."""
    num_tokens: int
    """Committed."""


def check(history: History, oracle: Oracle) -> Findings:
    by_seed: defaultdict[int, list[TaskEnd]] = defaultdict(list)
    for task in history.tasks:
        by_seed[task.seed].append(task)
    known = {task.task_id: task for task in history.tasks}
    asked = {story.asked.seed: story for story in history.stories}
    violations: list[Violation] = []
    for task in history.tasks:
        violations += _of_task(task)
        story = asked.get(task.seed)
        if story is None:
            violations.append(Violation("no task out of nowhere", f"nobody asked for {task.task_id}"))
        else:
            violations += _against_request(task, story, oracle)
    for story in history.stories:
        violations += _of_story(story, known, by_seed[story.asked.seed])
    accepted = [known[story.accepted[0]] for story in history.stories if story.accepted and story.accepted[0] in known]
    failures = Counter(task.error for task in accepted if task.state == "failed")
    if failures.total() > max(1, int(MAX_FAILED * len(accepted))):
        violations.append(
            Violation("at most 1 % fail", f"{failures.total()} of {len(accepted)} failed: {dict(failures)}")
        )
    return Findings(
        violations=tuple(violations),
        states=Counter(task.state for task in accepted),
        failures=failures,
        refusals=Counter(story.refusal for story in history.stories if not story.accepted),
        num_tokens=sum(len(task.token_ids) for task in history.tasks),
    )


def _of_task(task: TaskEnd) -> Iterator[Violation]:
    """What holds for any task, whoever asked for it."""
    if task.state not in TERMINAL:
        yield Violation("every task ends", f"{task.task_id} is {task.state}")
    elif task.ends != (task.state,):
        yield Violation("one terminal state", f"{task.task_id} is {task.state}, its stream tells {task.ends}")
    if task.state == "failed" and not task.error:
        yield Violation("who fails says why", task.task_id)
    written: list[int] = []
    for first, ids in task.commits:
        if first != len(written):
            what = "again" if first < len(written) else "after a gap"
            yield Violation("nothing is committed twice", f"{task.task_id}: token {first} of {len(written)} {what}")
        written += ids
    if tuple(written) != task.token_ids:
        yield Violation(
            "the stream is the commit log", f"{task.task_id}: {len(written)} tokens told, {len(task.token_ids)} kept"
        )


def _against_request(task: TaskEnd, story: Story, oracle: Oracle) -> Iterator[Violation]:
    asked = story.asked
    if task.prompt_ids != asked.prompt_ids or task.max_tokens != asked.max_tokens:
        yield Violation("what was asked is what is computed", f"{task.task_id} has another prompt or limit")
        return
    right = tuple(oracle(asked))
    if task.token_ids != right[: len(task.token_ids)]:
        wrong = next(
            (i for i, ids in enumerate(zip(task.token_ids, right, strict=False)) if ids[0] != ids[1]), len(right)
        )
        yield Violation("no wrong token", f"{task.task_id}: token {wrong} of {len(task.token_ids)}")
    elif task.state == "completed" and task.token_ids != right:
        yield Violation("whole answers", f"{task.task_id} has {len(task.token_ids)} of {len(right)} tokens")
    if task.state == "cancelled" and not (story.cancel_asked or story.has_left):
        yield Violation("nobody else cancels", f"{task.task_id}, {asked.way}: {task.error}")


def _of_story(story: Story, known: dict[str, TaskEnd], tasks: Sequence[TaskEnd]) -> Iterator[Violation]:
    asked = story.asked
    if len(set(story.accepted)) > 1 or (asked.way is not Way.ONCE and len(tasks) > 1):
        ids = sorted({*story.accepted, *(task.task_id for task in tasks)})
        yield Violation("one key, one task", f"{asked.way} of seed {asked.seed}: {ids}")
    if story.gave_up:
        yield Violation("every client hears the end", f"{story.accepted} ({asked.way}): {story.gave_up}")
    for task_id in dict.fromkeys(story.accepted):
        task = known.get(task_id)
        if task is None:
            yield Violation("nothing accepted is lost", f"{task_id} is not in the registry")
        else:
            yield from _of_reading(story, task)


def _of_reading(story: Story, task: TaskEnd) -> Iterator[Violation]:
    """What a client was told is what was committed."""
    told = {reading.end for reading in story.readings if reading.end} | set(story.seen_states)
    if told - {task.state}:
        yield Violation("an end stays", f"{task.task_id} is {task.state}, its client was told {sorted(told)}")
    if story.cancel_accepted and task.state != "cancelled":
        yield Violation("a cancel that was accepted holds", f"{task.task_id} is {task.state}")
    ids = story.token_ids
    if tuple(ids) != task.token_ids[: len(ids)]:
        yield Violation("clients see what is committed", f"{task.task_id}: {len(ids)} tokens seen, not a prefix")
    for number, reading in enumerate(story.readings):
        if not task.text.startswith(reading.text):
            yield Violation("clients see what is committed", f"{task.task_id}: reading {number} is no prefix")
    end = story.readings[-1].end if story.readings else None
    if end == "completed" and story.asked.way in {Way.FOLLOW, Way.CANCEL} and tuple(ids) != task.token_ids:
        yield Violation("a stream that ended is whole", f"{task.task_id}: {len(ids)} of {len(task.token_ids)} tokens")
    if end == "completed" and story.asked.way in {Way.STREAM, Way.ONCE} and story.readings[-1].text != task.text:
        yield Violation("a stream that ended is whole", f"{task.task_id}: the text is not the answer's")
