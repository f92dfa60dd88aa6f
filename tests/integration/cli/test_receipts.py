"""`butterfly receipts`, from its arguments to what it prints."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.cli.__main__ import main
from shared.contracts.receipts import BundleBody
from tests.fakes.bundles import HonestRun
from tests.fakes.gateway import FakeGateway, fake_gateway
from tests.fakes.identities import COORDINATOR_KEY, KEYS
from tests.fakes.tiny_models import write_tiny_model

Run = Callable[..., tuple[int, str, str]]
GUARANTEE = "verified: mode audit, profile exact, f = 1: 11 tokens in 4 windows"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as fake:
        yield fake


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output, standard error."""

    def of(*arguments: object) -> tuple[int, str, str]:
        code = main(["receipts", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return of


def body() -> dict[str, object]:
    told: dict[str, object] = json.loads(BundleBody.of(HonestRun().bundle()).model_dump_json())
    return told


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def keys(coordinator: str = COORDINATOR_KEY.public_key.hex()) -> dict[str, object]:
    return {"coordinator": coordinator, "nodes": {node_id: key.public_key.hex() for node_id, key in KEYS.items()}}


def test_a_fetched_receipt_holds_as_a_file_without_any_service(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answers["GET /v1/tasks/t-1/receipt"] = 200, body()
    code, out, _ = run("get", "t-1", "--api", gateway.url)
    assert code == 0
    file = tmp_path / "answer.json"
    file.write_text(out, encoding="utf-8")
    code, out, err = run("verify", file, "--api", "http://127.0.0.1:1")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(GUARANTEE)
    assert first.endswith("committed by the coordinator the file names; tail audit: none")
    assert second == f"coordinator {COORDINATOR_KEY.public_key.hex()}"


def test_a_tasks_receipt_is_fetched_and_checked(run: Run, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/tasks/t-1/receipt"] = 200, body()
    code, out, _ = run("verify", "t-1", "--api", gateway.url)
    assert code == 0
    assert out.startswith(GUARANTEE)


def test_an_unknown_task_is_told_in_the_gateways_words(run: Run, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/tasks/t-1/receipt"] = 404, {"code": "task_not_found", "detail": "there is no task t-1"}
    assert run("verify", "t-1", "--api", gateway.url) == (1, "", "butterfly: there is no task t-1\n")


def test_known_keys_are_the_only_ones_that_count(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "answer.json", body())
    code, out, _ = run("verify", file, "--keys", write(tmp_path / "keys.json", keys()))
    assert code == 0
    assert "committed by a coordinator you trust" in out
    other = write(tmp_path / "keys.json", keys(coordinator="ab" * 32))
    code, out, err = run("verify", file, "--keys", other)
    assert (code, out) == (1, "")
    assert err.endswith("is not the one you trust\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "should hold"),
        ({"coordinator": "ab"}, "is no public key of 32 bytes in hex"),
        (keys() | {"nodes": {"node-x": "ab" * 32}}, "the key of node-x is not its own"),
    ],
)
def test_a_file_of_keys_that_is_none_is_refused(run: Run, tmp_path: Path, content: object, said: str) -> None:
    file = write(tmp_path / "answer.json", body())
    code, _, err = run("verify", file, "--keys", write(tmp_path / "keys.json", content))
    assert code == 1
    assert said in err


def test_a_changed_receipt_is_refused_in_one_sentence(run: Run, tmp_path: Path) -> None:
    told = body() | {"answer_ids": [1, 2, 3]}
    assert run("verify", write(tmp_path / "answer.json", told)) == (
        1,
        "",
        "butterfly: the answer's ids are not those that were committed\n",
    )


def test_what_is_no_receipt_is_refused_in_one_sentence(run: Run, tmp_path: Path) -> None:
    code, _, err = run("verify", write(tmp_path / "answer.json", {"choices": []}))
    assert code == 1
    assert err.startswith("butterfly: this is no receipt: ")
    assert len(err.splitlines()) == 1


def test_a_missing_file_is_not_taken_for_a_task(run: Run) -> None:
    assert run("verify", "gone.json") == (1, "", "butterfly: there is no file gone.json\n")


def test_a_replay_with_another_model_says_what_differs(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "answer.json", body())
    model = write_tiny_model(tmp_path / "tiny.gguf")
    code, out, err = run("verify", file, "--replay", model)
    assert code == 1
    assert out.startswith(GUARANTEE)
    assert err == "butterfly: the replay differs: tiny.gguf is not the model that gave this answer\n"


def test_a_replay_without_its_model_says_so(run: Run, tmp_path: Path) -> None:
    code, _, err = run("verify", write(tmp_path / "answer.json", body()), "--replay", tmp_path / "gone.gguf")
    assert code == 1
    assert "there is no model file" in err


def test_the_keys_of_a_cluster_are_printed_as_verify_reads_them(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answers["GET /v1/keys"] = 200, keys()
    code, out, _ = run("keys", "--api", gateway.url)
    assert code == 0
    trusted = tmp_path / "keys.json"
    trusted.write_text(out, encoding="utf-8")
    code, out, err = run("verify", write(tmp_path / "answer.json", body()), "--keys", trusted)
    assert (code, err) == (0, "")
    assert out.startswith(GUARANTEE)
