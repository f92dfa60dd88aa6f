"""Tasks and tokens for tests."""

import itertools
from dataclasses import replace

from shared.domain.ids import ModelId, TaskId
from shared.domain.task import InferenceTask, SamplerParams, StopRules, TaskGroup, TaskKind, TokenRecord

MODEL = ModelId("tiny")
GROUP = TaskGroup(MODEL)

_numbers = itertools.count(1)


def make_task(**changes: object) -> InferenceTask:
    """A small task with an id of its own; ids sort in the order of making."""
    number = next(_numbers)
    task = InferenceTask(
        task_id=TaskId(f"0199f2aa-0000-7000-8000-{number:012x}"),
        kind=TaskKind.COMPLETION,
        model_id=MODEL,
        prompt_ids=(1, 2, 3),
        max_tokens=8,
        sampler=SamplerParams(),
        stop=StopRules(),
        owner="anna",
    )
    return replace(task, **changes)  # type: ignore[arg-type]  # a test names fields that exist


def make_token(token_id: int) -> TokenRecord:
    return TokenRecord(token_id=token_id, logit=0.5, other_id=token_id + 1, other_logit=0.25)


def make_tokens(*token_ids: int) -> tuple[TokenRecord, ...]:
    return tuple(make_token(token_id) for token_id in token_ids)
