"""The operator's commands, from their arguments to what they print."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.cli.__main__ import main
from services.cli.stores.data_dir import ClusterStatus, DataDir, ProcessStatus
from tests.fakes.free_ports import free_base_port
from tests.fakes.gateway import FakeGateway, delta, fake_gateway
from tests.fakes.valkey import ValkeyServer, running_valkey

NODE = {
    "node_id": "node-a",
    "state": "ready",
    "address": "http://127.0.0.1:8090",
    "capability": {"memory_bytes": 1, "speed": 1.25, "is_measured": True},
    "stages": [{"model": "m", "start": 10, "end": 20, "lane": 0}, {"model": "m", "start": 0, "end": 10, "lane": 0}],
    "a_later_version": "says more",
}
TASK = {"task_id": "t-1", "status": "queued", "model": "m", "created_at": "2026-01-01T00:00:00Z", "error": None}

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as fake:
        yield fake


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], gateway: FakeGateway) -> Ask:
    """Run a command on the fake gateway: exit code, standard output, standard error."""

    def run(*arguments: str, api: bool = True) -> tuple[int, str, str]:
        try:
            code = main([*arguments, *(("--api", gateway.url) if api else ())])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_nodes_are_shown_with_their_layers(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/nodes"] = 200, {"object": "list", "data": [NODE]}
    code, out, _ = ask("nodes")
    assert code == 0
    assert out.splitlines()[1].split() == [
        "node-a",
        "ready",
        "http://127.0.0.1:8090",
        "1.25",
        "m",
        "0-10,",
        "m",
        "10-20",
    ]


def test_a_node_that_is_kept_away_is_shown_with_the_reason(ask: Ask, gateway: FakeGateway) -> None:
    evicted = NODE | {"state": "evicted", "stages": [], "reason": "lied (evidence e1)"}
    gateway.answers["GET /v1/nodes"] = 200, {"object": "list", "data": [evicted]}
    assert ask("nodes", "list")[1].splitlines()[1].split(maxsplit=5)[1:] == [
        "evicted",
        "http://127.0.0.1:8090",
        "1.25",
        "-",
        "lied (evidence e1)",
    ]


def test_nodes_are_quarantined_and_reinstated_at_the_coordinator(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers |= {"POST /nodes/node-a/quarantine": (200, {}), "POST /nodes/node-a/reinstate": (200, {})}
    at = ("--coordinator", gateway.url)
    code, out, _ = ask("nodes", "quarantine", "node-a", "--reason", "odd", *at, api=False)
    assert (code, out.split(":")[0]) == (0, "node-a is quarantined")
    assert ask("nodes", "reinstate", "node-a", *at, api=False)[:2] == (0, "node-a may serve again\n")
    assert [asked for asked in gateway.asked if asked[0].startswith("POST")] == [
        ("POST /nodes/node-a/quarantine", {"reason": "odd"}),
        ("POST /nodes/node-a/reinstate", None),
    ]


def test_nodes_are_drained_and_resumed_at_the_coordinator(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers |= {"POST /nodes/node-a/drain": (200, {}), "POST /nodes/node-a/resume": (200, {})}
    at = ("--coordinator", gateway.url)
    code, out, _ = ask("nodes", "drain", "node-a", *at, api=False)
    assert (code, out.split(":")[0]) == (0, "node-a gets no new work")
    assert ask("nodes", "resume", "node-a", *at, api=False)[:2] == (0, "node-a gets work again\n")
    assert [asked for asked, _ in gateway.asked if asked.startswith("POST")] == [
        "POST /nodes/node-a/drain",
        "POST /nodes/node-a/resume",
    ]


def test_a_node_is_measured_anew(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers["POST /nodes/node-a/measure"] = 202, {}
    code, out, _ = ask("nodes", "measure", "node-a", "--coordinator", gateway.url, api=False)
    assert (code, out.split(":")[0]) == (0, "node-a will be measured while it has nothing else to do")
    assert [asked for asked, _ in gateway.asked if asked.startswith("POST")] == ["POST /nodes/node-a/measure"]


def test_a_node_that_was_not_measured_says_so(ask: Ask, gateway: FakeGateway) -> None:
    node = NODE | {"capability": {"speed": 2.0, "is_measured": False}}
    gateway.answers["GET /v1/nodes"] = 200, {"object": "list", "data": [node]}
    assert "2.00 (not measured)" in ask("nodes")[1]


PREVIEW = {
    "model": "m",
    "strategy": "load_balanced",
    "pipelines": [{"plan_id": "p-1", "tokens_per_s": 30.0, "lanes": []}],
    "predicted": {
        "tokens_per_s": 40.0,
        "verified_tokens_per_s": 25.25,
        "first_token_ms": 512.4,
        "answers_ms": 4321.0,
        "is_measured": False,
    },
    "seats": [
        {
            "lane": 0,
            "stage": 0,
            "node_id": "node-a",
            "start": 0,
            "end": 30,
            "decode_ms": 7.25,
            "prefill_ms_per_token": 2.5,
        }
    ],
    "nodes": [
        {"node_id": "node-a", "used_bytes": 100 << 20, "reserved_bytes": 200 << 20, "memory_bytes": 1 << 30},
    ],
}


def test_a_plan_is_previewed(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers["POST /v1/plans/preview"] = 200, PREVIEW
    code, out, _ = ask("plan", "--model", "m", "--stages", "3", "--verification", "audit", "--sequences", "2")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["0", "0", "0-30", "node-a", "7.2", "ms", "2.50", "ms/token"] in lines
    assert ["node-a", "100", "MiB", "200", "MiB", "1024", "MiB"] in lines
    assert ["tokens/s", "25.2", "-"] in lines
    assert ["first", "token,", "ms", "512", "-"] in lines
    assert ["all", "answers,", "ms", "4321", "-"] in lines
    assert "Not every node has been measured" in out
    (asked,) = [body for what, body in gateway.asked if what == "POST /v1/plans/preview"]
    assert asked == {
        "model": "m",
        "sequences": 2,
        "prompt_tokens": 128,
        "context_tokens": 256,
        "stages": 3,
        "verification": "audit",
    }


def test_a_plan_is_told_as_json(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers["POST /v1/plans/preview"] = 200, PREVIEW
    code, out, _ = ask("plan", "--model", "m", "--json")
    assert (code, json.loads(out)) == (0, {**PREVIEW, "measured": None})


def test_only_the_plan_in_use_can_be_measured(ask: Ask) -> None:
    code, _, err = ask("plan", "--model", "m", "--run", "--stages", "2")
    assert code == 1
    assert "leave out --strategy, --objective, --stages" in err


def test_an_answer_that_fails_while_a_plan_is_measured_is_told(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers |= {
        "POST /v1/plans/preview": (200, PREVIEW),
        "POST /v1/tasks": (202, TASK),
        "GET /v1/tasks/t-1/events": (200, b'event: end\ndata: {"status": "failed"}\n\n'),
    }
    code, _, err = ask("plan", "--model", "m", "--run")
    assert code == 1
    assert "an answer did not come to its end" in err


def test_evidence_is_listed_and_downloaded_from_the_coordinator(ask: Ask, gateway: FakeGateway) -> None:
    summary = {"evidence_id": "ev-1", "node_id": "node-a", "rule": 6, "detail": "2 nodes made other rows"}
    body = {"v": 1, "rule": 6, "node_id": "node-a", "receipts": [{"text": "x", "signature": "00"}]}
    gateway.answers |= {"GET /evidence": (200, {"evidence": [summary]}), "GET /evidence/ev-1": (200, body)}
    at = ("--coordinator", gateway.url)
    code, out, _ = ask("evidence", "list", *at, api=False)
    assert code == 0
    assert out.splitlines()[1].split(maxsplit=3) == ["ev-1", "node-a", "6", "2 nodes made other rows"]
    code, out, _ = ask("evidence", "get", "ev-1", *at, api=False)
    assert (code, json.loads(out)) == (0, body)


def test_where_nobody_was_convicted_there_is_no_evidence(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers["GET /evidence"] = 200, {"evidence": []}
    assert ask("evidence", "list", "--coordinator", gateway.url, api=False) == (0, "no evidence\n", "")


def test_evidence_that_is_not_there_is_a_refusal_and_its_name_cannot_become_another_path(
    ask: Ask, gateway: FakeGateway
) -> None:
    code, out, err = ask("evidence", "get", "../nodes", "--coordinator", gateway.url, api=False)
    assert (code, out) == (1, "")
    assert "/evidence/..%2Fnodes with status 404" in err


def test_what_the_coordinator_refuses_is_told(ask: Ask, gateway: FakeGateway) -> None:
    refusal = {
        "type": "about:blank",
        "title": "not found",
        "status": 404,
        "detail": "nothing keeps node node-a away",
        "code": "node_not_found",
        "retryable": False,
    }
    gateway.answers["POST /nodes/node-a/reinstate"] = 404, refusal
    assert ask("nodes", "reinstate", "node-a", "--coordinator", gateway.url, api=False) == (
        1,
        "",
        "butterfly: nothing keeps node node-a away\n",
    )


def test_a_node_without_layers_is_shown_with_the_reason(ask: Ask, gateway: FakeGateway) -> None:
    idle = NODE | {"stages": [], "reason": "too small: it offers 20 MiB"}
    gateway.answers["GET /v1/nodes"] = 200, {"object": "list", "data": [idle, idle | {"reason": None}]}
    _, too_small, spare = ask("nodes")[1].splitlines()
    assert too_small.endswith(" too small: it offers 20 MiB")
    assert spare.endswith(" -")


def test_status_as_json_hands_on_what_the_gateway_tells(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/nodes"] = 200, {"object": "list", "data": [NODE]}
    code, out, _ = ask("status", "--json")
    assert code == 0
    assert json.loads(out) == {"processes": [], "nodes": [NODE]}


def test_status_without_a_cluster_is_a_refusal(ask: Ask, tmp_path: Path) -> None:
    code, _, err = ask("status", "--data-dir", str(tmp_path), api=False)
    assert code == 1
    assert err == (
        f"butterfly: no cluster runs in {tmp_path}: start one by `butterfly up`, or name a gateway by --api\n"
    )


def test_redis_is_asked_on_loopback_wherever_the_cluster_listens(
    ask: Ask, gateway: FakeGateway, tmp_path: Path, valkey: ValkeyServer
) -> None:
    gateway.answers["GET /v1/nodes"] = 200, {"object": "list", "data": []}
    data = DataDir(tmp_path)
    data.prepare()
    redis = ProcessStatus(name="redis", pid=1, port=valkey.port, state="ready", restarts=0)
    with data.lock():
        data.write_status(
            ClusterStatus(
                pid=1,
                host="127.0.0.2",  # the server listens on 127.0.0.1 alone
                api_url=gateway.url,
                partitioner_url=gateway.url,
                coordinator_url=gateway.url,
                model="m",
                processes=(redis,),
            )
        )
        code, out, _ = ask("status", "--data-dir", str(tmp_path), api=False)
    assert code == 0
    assert out.splitlines()[1].split()[3:] == ["ready", "0"]


def test_a_question_is_answered_as_it_streams(ask: Ask, gateway: FakeGateway) -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    usage = {"choices": [], "usage": {"total_tokens": 3}}
    gateway.stream(role, delta("Hel"), delta("lo é"), usage)
    assert ask("chat", "Hi", "--model", "m", "--max-tokens", "5", "--temperature", "0", "--seed", "7") == (
        0,
        "Hello é\n",
        "",
    )
    assert gateway.asked == [
        (
            "POST /v1/chat/completions",
            {
                "model": "m",
                "messages": [{"role": "user", "content": "Hi"}],
                "stream": True,
                "max_tokens": 5,
                "temperature": 0.0,
                "seed": 7,
            },
        )
    ]


def test_the_first_model_is_asked_when_none_is_named(ask: Ask, gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/models"] = 200, {"object": "list", "data": [{"id": "first"}, {"id": "second"}]}
    gateway.stream(delta("x"))
    assert ask("chat", "Hi")[0] == 0
    assert gateway.asked[-1][1]["model"] == "first"  # type: ignore[index]


def test_a_conversation_is_kept(ask: Ask, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    gateway.stream(delta("answer"))
    assert ask("chat", "--model", "m")[:2] == (0, "answer\nanswer\n")
    assert gateway.asked[-1][1]["messages"] == [  # type: ignore[index]
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "two"},
    ]


def test_a_failed_answer_leaves_the_conversation_as_it_was(
    ask: Ask, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    gateway.stream(delta("begun"), {"error": {"message": "a node was lost", "code": "generation_failed"}})
    code, _, err = ask("chat", "--model", "m")
    assert code == 0
    assert err == "butterfly: a node was lost\n" * 2
    assert gateway.asked[-1][1]["messages"] == [{"role": "user", "content": "two"}]  # type: ignore[index]


def test_a_failure_within_the_stream_is_told(ask: Ask, gateway: FakeGateway) -> None:
    gateway.stream(delta("begun"), {"error": {"message": "too late", "code": "deadline_exceeded"}})
    code, out, err = ask("chat", "Hi", "--model", "m")
    assert (code, err) == (1, "butterfly: too late\n")
    assert out.startswith("begun")


def test_a_stream_that_just_ends_is_not_taken_for_an_answer(ask: Ask, gateway: FakeGateway) -> None:
    gateway.stream(delta("begun"), ends=False)
    code, _, err = ask("chat", "Hi", "--model", "m")
    assert code == 1
    assert "before the answer was complete" in err


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "in the OpenAI dialect", "code": "model_not_found"}}, "in the OpenAI dialect"),
        ({"code": "x", "detail": "as a problem", "title": "t"}, "as a problem"),
        (b"<html>", "the gateway answered with status 404"),
        ([], "the gateway answered with status 404"),
    ],
)
def test_refusals_are_told_in_the_words_of_the_gateway(
    ask: Ask, gateway: FakeGateway, body: object, expected: str
) -> None:
    gateway.answers["GET /v1/nodes"] = 404, body
    assert ask("nodes") == (1, "", f"butterfly: {expected}\n")


@pytest.mark.parametrize("body", [b"nonsense", {"data": 3}, {}, {"data": [{"node_id": 5}]}, []])
def test_an_answer_that_is_no_list_of_nodes_is_refused(ask: Ask, gateway: FakeGateway, body: object) -> None:
    gateway.answers["GET /v1/nodes"] = 200, body
    code, _, err = ask("nodes")
    assert code == 1
    assert err.startswith("butterfly: the gateway answered with")
    assert err.count("\n") == 1


def test_tasks_are_listed_submitted_shown_and_cancelled(ask: Ask, gateway: FakeGateway) -> None:
    failed = TASK | {"task_id": "t-0", "status": "failed", "error": {"code": "deadline_exceeded", "message": "late"}}
    gateway.answers |= {
        "GET /v1/tasks?limit=20": (200, {"data": [TASK, failed]}),
        "POST /v1/tasks": (202, TASK),
        "GET /v1/tasks/t-1": (200, TASK),
        "POST /v1/tasks/t-1/cancel": (202, TASK | {"status": "cancelled"}),
    }
    assert [line.split()[:2] for line in ask("tasks")[1].splitlines()[1:]] == [["t-1", "queued"], ["t-0", "failed"]]
    assert ask("tasks", "list")[1] == ask("tasks")[1]
    assert ask("tasks", "submit", "Hi", "--model", "m", "--priority", "5")[1] == "t-1\n"
    body = {"kind": "chat", "model": "m", "input": {"messages": [{"role": "user", "content": "Hi"}]}, "priority": 5}
    assert gateway.asked[-1] == ("POST /v1/tasks", body)
    assert json.loads(ask("tasks", "show", "t-1")[1]) == TASK
    assert ask("tasks", "cancel", "t-1")[1] == "t-1 cancelled\n"


def test_a_task_id_cannot_become_another_path(ask: Ask, gateway: FakeGateway) -> None:
    ask("tasks", "show", "../models")
    assert gateway.asked[-1][0] == "GET /v1/tasks/..%2Fmodels"


def test_a_gateway_that_is_not_there_is_named(ask: Ask) -> None:
    code, _, err = ask("nodes", "--api", "http://127.0.0.1:9", api=False)
    assert code == 1
    assert "no gateway answers at http://127.0.0.1:9" in err


def test_an_address_that_is_no_url_is_refused(ask: Ask) -> None:
    assert ask("nodes", "--api", "localhost:8080", api=False)[0] == 1


def test_a_right_configuration_is_ok_and_a_misspelt_key_gets_its_right_name(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[scheduling]\nmax_queue_size = 5\n")
    assert ask("config", "check", str(file), api=False) == (0, f"OK: {file}\n", "")
    file.write_text("[scheduling]\nmax_que_size = 5\n")
    code, _, err = ask("config", "check", str(file), api=False)
    assert code == 1
    assert err == "butterfly: unknown key scheduling.max_que_size: the nearest key is scheduling.max_queue_size\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("up", "--workers", "-1"),
        ("up", "--stages", "0"),
        ("up", "--base-port", "x"),
        ("worker",),
        ("config",),
        ("models", "add"),
        ("chat", "--temperature", "warm"),
    ],
)
def test_wrong_usage_ends_with_two(ask: Ask, arguments: tuple[str, ...]) -> None:
    code, _, err = ask(*arguments, api=False)
    assert code == 2
    assert "usage: butterfly" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("worker", "--join", "nowhere", "--token", "t"), "--join: 'nowhere' should be a URL"),
        (("worker", "--join", "http://127.0.0.1:1", "--token", "t", "--listen", "8090"), "--listen: '8090' should be"),
        (
            ("worker", "--join", "http://127.0.0.1:1", "--token", "t", "--listen", "192.0.2.1:80"),
            "cannot listen on 192.0.2.1:80",
        ),
        (("up", "--model", "../x"), "is no GGUF file"),
        (("up", "--model", "unheard-of"), "no model 'unheard-of'"),
        (("models", "pull", "unheard-of"), "no model 'unheard-of' to pull"),
        (("models", "remove", "unheard-of"), "no model 'unheard-of' in"),
        (("models", "add", "/no/such.gguf"), "/no/such.gguf is no file"),
        (("nodes", "reinstate", "n", "--coordinator", "here"), "--coordinator: 'here' should be a URL"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_ends_with_one(
    ask: Ask, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "x").write_text("no model")
    arguments = tuple(str(tmp_path / "x") if argument == "../x" else argument for argument in arguments)
    if arguments[0] == "up":
        arguments += ("--base-port", str(free_base_port(4)))
    code, _, err = ask(*arguments, "--data-dir", str(tmp_path), api=False)
    assert code == 1
    assert expected in err
    assert err.splitlines()[-1].startswith("butterfly: ")
    assert "Traceback" not in err


def test_a_reader_that_leaves_is_no_error_worth_a_traceback(gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/tasks?limit=20"] = 200, {"data": [TASK] * 20_000}
    done = subprocess.run(
        f"{sys.executable} -m services.cli tasks --api {gateway.url} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert done.stdout.startswith("TASK")
    assert done.stderr == ""
