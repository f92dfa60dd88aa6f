"""A cluster on a model whose bits depend on the call: its answers are audited, and anyone can compute them again."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import httpx
import pytest

from tests.e2e.running import Cluster, end_cluster, start_cluster
from tests.fakes.free_ports import free_base_port
from tests.fakes.tiny_models import write_tiny_model

NUM_TOKENS = 40
PROMPTS = [[(13 * place) % 500 + 3 for place in range(length)] for length in (130, 64, 9, 2)]


@pytest.fixture(scope="module")
def half_precision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    folder = tmp_path_factory.mktemp("half")
    model = write_tiny_model(folder / "half.gguf", weight_type=gguf.GGMLQuantizationType.F16)
    cluster = start_cluster(model, folder / "cluster", base_port=free_base_port(3), workers=3, stages=3)
    yield cluster, model
    end_cluster(cluster)


def answered(cluster: Cluster, prompt: Sequence[int]) -> str:
    """The id of an audited task that has ended well."""
    task = {"prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0.8, "seed": 3}
    body = {"kind": "completion", "model": cluster.model, "input": task, "verification": {"mode": "audit"}}
    with httpx.Client(base_url=cluster.api_url, trust_env=False, timeout=120) as client:
        accepted = client.post("/v1/tasks", json=body)
        assert accepted.status_code == 202, accepted.text
        task_id = str(accepted.json()["task_id"])
        ended = client.get(f"/v1/tasks/{task_id}", params={"wait": 30}).json()
    assert ended["status"] == "completed", ended
    return task_id


def test_audited_answers_of_a_decode_exact_model_can_be_computed_again(half_precision: tuple[Cluster, Path]) -> None:
    """Several at once: lane 0 has more rows ready than one call may take."""
    cluster, model = half_precision
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        tasks = list(pool.map(lambda prompt: answered(cluster, prompt), PROMPTS))
    for task_id in tasks:
        checked = cluster.butterfly("receipts", "verify", task_id, "--replay", str(model))
        assert checked.returncode == 0, checked.stderr
        assert "verified: mode audit, profile decode-exact, f = 1" in checked.stdout
        assert f"replayed: {NUM_TOKENS} tokens and " in checked.stdout
        assert checked.stdout.rstrip().endswith("chain values are equal")
    with httpx.Client(base_url=cluster.api_url, trust_env=False) as client:
        (told,) = client.get("/v1/models").json()["data"]
    assert told["butterfly"]["profile"] == "decode-exact"
