"""The token ids of an answer: as a cluster commits them, and as the whole model in one process gives them."""

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import httpx

from services.worker.domain.token_rule import choose_token
from shared.domain.task import SamplerParams, TokenRecord
from tests.integration.engine.stages import Chain

NUM_TOKENS = 40
TASK_LIMIT_S = 120.0


class Gateway(Protocol):
    """Of a running cluster, however it was started."""

    @property
    def api_url(self) -> str: ...

    @property
    def model(self) -> str: ...


def expected_tokens(
    whole: Chain, prompt: Sequence[int], sampler: SamplerParams, *, num_tokens: int = NUM_TOKENS
) -> list[int]:
    """The token rule on the logits of the whole model."""
    found: list[TokenRecord] = []
    logits = whole.prefill(prompt, 0)
    while True:
        position = len(prompt) + len(found) - 1
        ids = [record.token_id for record in found]
        found.append(choose_token(logits[0], position=position, params=sampler, prompt_ids=prompt, generated_ids=ids))
        if len(found) == num_tokens:
            whole.drop(0)
            return [record.token_id for record in found]
        logits = whole.step([found[-1].token_id], [0])


def generated_tokens(
    cluster: Gateway, prompt: Sequence[int], sampling: Mapping[str, float], *, num_tokens: int = NUM_TOKENS
) -> list[int]:
    """What the cluster commits for a task, read from the task's event stream. Raises `AssertionError` for a task that
    does not complete."""
    options = {"max_tokens": num_tokens, "ignore_eos": True, **sampling}
    body = {"kind": "completion", "model": cluster.model, "input": {"prompt": list(prompt), **options}}
    with httpx.Client(base_url=cluster.api_url, trust_env=False, timeout=TASK_LIMIT_S) as client:
        accepted = client.post("/v1/tasks", json=body)
        assert accepted.status_code == 202, accepted.text
        with client.stream("GET", accepted.json()["links"]["events"]) as events:
            name, ids = "", []
            for line in events.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name == "commit":
                    ids += json.loads(value)["token_ids"]
                elif field == "data" and name == "end":
                    assert json.loads(value)["status"] == "completed", value
    return ids
