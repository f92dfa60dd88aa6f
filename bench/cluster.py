"""A real cluster, measured from outside: `butterfly up`, then requests to its gateway."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.measure import Load, Memory, Rates, memory_of

START_LIMIT_S = 180.0
ENDPOINT = "/v1/completions"
PARTITIONER_OFFSET, COORDINATOR_OFFSET = 2, 3  # ports of `butterfly up`


@dataclass(frozen=True, slots=True)
class Cluster:
    api_url: str
    model: str
    data_dir: Path
    startup_s: float

    @property
    def coordinator_url(self) -> str:
        return self._url(COORDINATOR_OFFSET)

    @property
    def partitioner_url(self) -> str:
        return self._url(PARTITIONER_OFFSET)

    def _url(self, offset: int) -> str:
        host, _, port = self.api_url.rpartition(":")
        return f"{host}:{int(port) + offset}"

    def measure(self, sequences: int, load: Load) -> Rates:
        """Rates as clients see them, through the gateway.

        Prefill: long prompts, one token each. Decode: what more tokens of short prompts take than one token each, so
        that prefill does not count and all sequences decode together nearly all the time.
        """
        prefill_s = self.answer_all(sequences, load.long_prompt, 1, "none")
        one_s = self.answer_all(sequences, load.short_prompt, 1, "none")
        many_s = self.answer_all(sequences, load.short_prompt, 1 + load.num_tokens, "none")
        return Rates(
            prefill_tokens_per_s=sequences * len(load.long_prompt) / prefill_s,
            decode_tokens_per_s=sequences * load.num_tokens / (many_s - one_s),
        )

    def answer_all(self, sequences: int, prompt: list[int], max_tokens: int, verification: str) -> float:
        """So many answers at once; seconds from the first request to the last answer."""
        return asyncio.run(self._answer_all(sequences, prompt, max_tokens, verification))

    def memory(self) -> dict[str, Memory]:
        """Per process, by name."""
        return {name: memory_of(pid) for name, pid in self._pids().items()}

    def worker_pids(self) -> list[int]:
        return [pid for name, pid in self._pids().items() if name.startswith("worker")]

    def _pids(self) -> dict[str, int]:
        command = [sys.executable, "-m", "services.cli", "status", "--json", "--data-dir", str(self.data_dir)]
        status = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return {process["name"]: process["pid"] for process in status["processes"]}

    async def _answer_all(self, sequences: int, prompt: list[int], max_tokens: int, verification: str) -> float:
        async with httpx.AsyncClient(base_url=self.api_url, timeout=120, trust_env=False) as client:
            started = time.perf_counter()
            await asyncio.gather(*(self._answer(client, prompt, max_tokens, verification) for _ in range(sequences)))
            return time.perf_counter() - started

    async def _answer(self, client: httpx.AsyncClient, prompt: list[int], max_tokens: int, verification: str) -> None:
        body: dict[str, object] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        body["butterfly"] = {"verification": verification}
        async with client.stream(
            "POST", ENDPOINT, json=body | {"stream": True, "stream_options": {"include_usage": True}}
        ) as answer:
            answer.raise_for_status()
            events = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: ")]
        usage = json.loads(events[-2])["usage"]
        if events[-1] != "[DONE]" or usage["completion_tokens"] != max_tokens:
            raise RuntimeError(f"the answer is not complete: {usage}")


@contextmanager
def running_cluster(
    *,
    workers: int,
    stages: int,
    base_port: int,
    data_dir: Path,
    model: Path,
    speeds: str = "declared",
    strategy: str = "load_balanced",
) -> Iterator[Cluster]:
    """`butterfly up` on a data folder that holds `model` already. `speeds`: as `coordination.speeds`; with `measured`
    the cluster tries its workers whenever they are idle. `strategy`: as `partition.default_strategy`."""
    models = data_dir / "models"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / model.name).exists():
        os.link(model, models / model.name)
    command = [sys.executable, "-m", "services.cli", "up", "--workers", str(workers), "--stages", str(stages)]
    command += ["--base-port", str(base_port), "--data-dir", str(data_dir), "--model", model.stem]
    started = time.perf_counter()
    log = data_dir / "up.log"
    with log.open("wb") as output:
        chosen = {"BUTTERFLY_COORDINATION__SPEEDS": speeds, "BUTTERFLY_PARTITION__DEFAULT_STRATEGY": strategy}
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **chosen}
        )
    try:
        _wait_until_printed(process, log, "curl")
        yield Cluster(f"http://127.0.0.1:{base_port}", model.stem, data_dir, time.perf_counter() - started)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _wait_until_printed(process: subprocess.Popen[bytes], log: Path, word: str) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while word not in log.read_text():
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"the cluster did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)
