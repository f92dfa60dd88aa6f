"""Clients of the gateway in a chaos run. They do what good clients do: try again with the same idempotency key, resume
a stream after the last event seen; and each writes down its story."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from random import Random

import httpx

from tests.chaos.history import Asked, Reading, Story, Way

WAYS = {Way.POLL: 3, Way.FOLLOW: 3, Way.STREAM: 3, Way.ONCE: 2, Way.CANCEL: 2, Way.TWICE: 1}
TRY_AGAIN_S = (0.2, 1.0)
TIMEOUT = httpx.Timeout(10.0, connect=2.0)
READ_S = 25.0  # of a stream, which says something every 10 s
POLL_S = 5
DEADLINE_S = 240.0
SUBMIT_LIMIT_S = 60.0
END_LIMIT_S = DEADLINE_S + 30.0
END_STATES = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Load:
    """What requests are drawn from."""

    model: str
    vocabulary: range
    prompt: tuple[int, int]
    """Tokens, from and to."""
    answer: tuple[int, int]
    """Most tokens of the answer, from and to."""
    ignore_eos: bool


def draw_requests(rng: Random, load: Load, count: int) -> list[Asked]:
    ways = rng.choices(list(WAYS), list(WAYS.values()), k=count)
    return [
        Asked(
            way=way,
            prompt_ids=tuple(rng.choice(load.vocabulary) for _ in range(rng.randint(*load.prompt))),
            max_tokens=rng.randint(*load.answer),
            temperature=rng.choice((0.0, 1.0)),
            seed=1_000_000 * rng.randrange(1, 1_000_000) + number,
        )
        for number, way in enumerate(ways)
    ]


class Clients:
    def __init__(self, api_url: str, load: Load, rng: Random) -> None:
        """`rng`: for pauses before trying again."""
        self._load, self._rng = load, rng
        self._http = httpx.AsyncClient(
            base_url=api_url, timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_connections=None)
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def play_all(self, requests: Sequence[Asked], *, over_s: float) -> list[Story]:
        """Begin them evenly over that time; returns when all have come to an end."""
        stories = [Story(asked) for asked in requests]
        began_s = time.monotonic()

        async def play_later(number: int, story: Story) -> None:
            await asyncio.sleep(max(0.0, began_s + over_s * number / len(stories) - time.monotonic()))
            await self._play(story)

        async with asyncio.TaskGroup() as group:
            for number, story in enumerate(stories):
                group.create_task(play_later(number, story))
        return stories

    async def result_text(self, task_id: str) -> str:
        """The answer as the gateway gives it; of a task that did not complete, what was committed."""
        answer = await self._http.get(f"/v1/tasks/{task_id}/result")
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])

    # --- ways

    async def _play(self, story: Story) -> None:
        match story.asked.way:
            case Way.POLL:
                await self._submit(story)
                await self._poll(story)
            case Way.TWICE:
                await asyncio.gather(self._submit(story), self._submit(story))
                await self._poll(story)
            case Way.FOLLOW:
                await self._submit(story)
                await self._follow(story)
            case Way.CANCEL:
                await self._submit(story)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow(story))
                    group.create_task(self._cancel(story))
            case Way.STREAM:
                await self._stream(story, is_repeated=True)
            case Way.ONCE:
                await self._stream(story, is_repeated=False)

    async def _submit(self, story: Story) -> None:
        terms = {"kind": "completion", "model": self._load.model, "deadline_s": DEADLINE_S}
        body = terms | {"input": self._input(story.asked)}
        headers = {"Idempotency-Key": f"chaos-{story.asked.seed}"}
        end_s = time.monotonic() + SUBMIT_LIMIT_S
        while time.monotonic() < end_s:
            try:
                answer = await self._http.post("/v1/tasks", json=body, headers=headers)
            except httpx.HTTPError as error:
                story.refusal = type(error).__name__
            else:
                if answer.is_success:
                    story.accepted.append(answer.json()["task_id"])
                    return
                story.refusal = f"{answer.status_code} {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code != 429:
                    return
            await self._pause()

    async def _poll(self, story: Story) -> None:
        end_s = time.monotonic() + END_LIMIT_S
        while story.accepted and time.monotonic() < end_s:
            try:
                answer = await self._http.get(f"/v1/tasks/{story.accepted[0]}", params={"wait": POLL_S})
                if answer.is_success and answer.json()["status"] in END_STATES:
                    story.seen_states.append(answer.json()["status"])
                    return
                if answer.status_code == 404:
                    story.gave_up = "404: the gateway does not know it"
                    return
            except httpx.HTTPError:
                pass
            await self._pause()
        if story.accepted:
            story.gave_up = f"it has not ended within {END_LIMIT_S:g} s"

    async def _follow(self, story: Story) -> None:
        after, end_s = "", time.monotonic() + END_LIMIT_S
        while story.accepted and time.monotonic() < end_s:
            reading = Reading()
            story.readings.append(reading)
            headers = {"Last-Event-ID": after} if after else {}
            try:
                async with self._http.stream(
                    "GET", f"/v1/tasks/{story.accepted[0]}/events", headers=headers, timeout=_reading()
                ) as answer:
                    if answer.status_code == 404:
                        story.gave_up = "404: the gateway does not know it"
                        return
                    async for name, entry_id, data in _events(answer):
                        after = entry_id or after
                        if name == "commit":
                            reading.token_ids += data["token_ids"]
                        elif name == "end":
                            reading.end = data["status"]
                            return
            except httpx.HTTPError:
                pass
            await self._pause()
        if story.accepted:
            story.gave_up = f"its stream has not ended within {END_LIMIT_S:g} s"

    async def _cancel(self, story: Story) -> None:
        """After some tokens, at the latest after some seconds."""
        num_tokens, end_s = self._rng.randrange(story.asked.max_tokens), time.monotonic() + 5.0
        while len(story.token_ids) < num_tokens and time.monotonic() < end_s:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)
        end_s = time.monotonic() + END_LIMIT_S
        while story.accepted and time.monotonic() < end_s:
            story.cancel_asked = True
            try:
                answer = await self._http.post(f"/v1/tasks/{story.accepted[0]}/cancel")
                if answer.is_success:
                    story.cancel_accepted = answer.status_code == 202
                    return
            except httpx.HTTPError:
                pass
            await self._pause()

    async def _stream(self, story: Story, *, is_repeated: bool) -> None:
        body = self._input(story.asked) | {"model": self._load.model, "stream": True}
        headers = {"Idempotency-Key": f"chaos-{story.asked.seed}"} if is_repeated else {}
        end_s = time.monotonic() + END_LIMIT_S
        story.has_left = not is_repeated
        while time.monotonic() < end_s:
            try:
                if await self._read_stream(story, body, headers):
                    return
            except httpx.HTTPError as error:
                story.refusal = type(error).__name__
            if story.accepted and not is_repeated:
                return
            if story.refusal.startswith("4"):
                return
            story.has_left = True  # for as long as it takes to come back; a task waits 15 s for its client
            await self._pause()
        if story.accepted:
            story.gave_up = f"its stream has not ended within {END_LIMIT_S:g} s"

    async def _read_stream(self, story: Story, body: dict[str, object], headers: dict[str, str]) -> bool:
        """Whether it came to its end."""
        async with self._http.stream(
            "POST", "/v1/completions", json=body, headers=headers, timeout=_reading()
        ) as answer:
            if not answer.is_success:
                story.refusal = f"{answer.status_code} {(await answer.aread())[:200].decode(errors='replace')}"
                return False
            reading = Reading()
            story.accepted.append(answer.headers["x-butterfly-task-id"])
            story.readings.append(reading)
            async for _, _, data in _events(answer):
                if "error" in data:
                    code = data["error"].get("code")
                    reading.end = {"task_cancelled": "cancelled", "server_draining": None}.get(code, "failed")
                    return reading.end is not None
                for choice in data["choices"]:
                    reading.text += choice["text"]
                    if choice["finish_reason"] is not None:
                        reading.end = "completed"
            return reading.end is not None

    # ---

    def _input(self, asked: Asked) -> dict[str, object]:
        return {
            "prompt": list(asked.prompt_ids),
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "seed": asked.seed,
            "ignore_eos": self._load.ignore_eos,
        }

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(*TRY_AGAIN_S))


def _reading() -> httpx.Timeout:
    return httpx.Timeout(READ_S, connect=2.0)


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, str, dict]]:  # type: ignore[type-arg]  # JSON as a client gets it
    """(name, id, data) of server-sent events."""
    name = entry_id = ""
    async for line in answer.aiter_lines():
        field, _, value = line.partition(": ")
        if not line:
            name = entry_id = ""
        elif field == "event":
            name = value
        elif field == "id":
            entry_id = value
        elif field == "data" and value != "[DONE]":
            yield name, entry_id, json.loads(value)
