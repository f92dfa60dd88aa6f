"""Bodies that no honest worker sends, from strangers and from a node that was let in: each is refused with a clear
code, costs no memory to speak of, and hurts nobody (verification.md section 15, 12)."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.cli.domain.cluster import Kind
from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.frame import MAGIC
from shared.contracts.messages import SignedText
from shared.domain.node_proof import make_proof
from shared.domain.plan import NodeCapability
from shared.domain.signing import SigningKey
from tests.byzantine.clusters import ask_all, join_token, states, url_of
from tests.byzantine.clusters import nodes as nodes_of
from tests.e2e.running import Cluster

MEBIBYTE = 1 << 20
MOST_GROWTH_BYTES = 96 * MEBIBYTE  # of any process, by all that is sent: far less than what is announced
ANSWER_LIMIT_S = 30.0
NOWHERE = "http://127.0.0.1:9"
DEEP = b"[" * 200_000
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Shot:
    """One hostile request."""

    name: str
    url: str
    body: bytes
    bearer: str = ""
    announced_bytes: int | None = None
    """In place of the body's own length."""


@dataclass(frozen=True, slots=True)
class Refusal:
    name: str
    status: int
    code: str
    """Of the answer; what went wrong if there was none."""

    @property
    def is_clear(self) -> bool:
        return 400 <= self.status < 500 and bool(self.code)


@dataclass(frozen=True, slots=True)
class HostileOutcome:
    refusals: tuple[Refusal, ...]
    wrong: int
    failures: tuple[str, ...]
    growth_bytes: Mapping[str, int]
    """By address of the process."""
    bad_nodes: tuple[str, ...]
    """Honest nodes that are not ready any more."""

    @property
    def faults(self) -> tuple[str, ...]:
        found = [
            f"{each.name}: NOT REFUSED CLEARLY ({each.status} {each.code})"
            for each in self.refusals
            if not each.is_clear
        ]
        if self.wrong or self.failures:
            found.append(f"{self.wrong} WRONG ANSWERS, {len(self.failures)} FAILED TASKS {self.failures[:1]}")
        found += [
            f"{name} GREW BY {growth // MEBIBYTE} MiB"
            for name, growth in self.growth_bytes.items()
            if growth > MOST_GROWTH_BYTES
        ]
        if self.bad_nodes:
            found.append(f"{len(self.bad_nodes)} HONEST NODES NOT READY")
        return tuple(found)


def play_hostile(cluster: Cluster, *, right: Sequence[list[int]], repeats: int = REPEATS) -> HostileOutcome:
    """All shots, several times over, while the cluster answers questions before and after."""
    honest = {node_id: str(node["address"]) for node_id, node in nodes_of(cluster).items() if node["state"] == "ready"}
    ask_all(cluster)  # loads what is needed, so that only the bodies can make anything grow
    coordinator = url_of(cluster, Kind.COORDINATOR)
    workers = [address if "://" in address else f"http://{address}" for address in honest.values()]
    before = {url: _resident_bytes(url) for url in (coordinator, *workers)}
    node_token = _let_in(cluster, coordinator)
    shots = [*_at_coordinator(cluster, coordinator, node_token), *_at_worker(workers[0])]
    refusals = [_fire(shot) for _ in range(repeats) for shot in shots]
    answers = ask_all(cluster)
    return HostileOutcome(
        refusals=tuple(refusals),
        wrong=sum(isinstance(got, list) and got != expected for got, expected in zip(answers, right, strict=True)),
        failures=tuple(answer for answer in answers if isinstance(answer, str)),
        growth_bytes={url: _resident_bytes(url) - size for url, size in before.items()},
        bad_nodes=tuple(node_id for node_id in honest if states(cluster).get(node_id) != "ready"),
    )


def _fire(shot: Shot) -> Refusal:
    """By a client that lets a request lie about its length, and hears an answer that comes before its end."""
    url = urlsplit(shot.url)
    connection = HTTPConnection(url.hostname or "", url.port, timeout=ANSWER_LIMIT_S)
    try:
        connection.putrequest("POST", url.path)
        connection.putheader("Content-Type", "application/json")
        if shot.bearer:
            connection.putheader("Authorization", f"Bearer {shot.bearer}")
        connection.putheader("Content-Length", str(shot.announced_bytes or len(shot.body)))
        connection.endheaders()
        with suppress(ConnectionError):
            connection.send(shot.body)
        reply = connection.getresponse()
        return Refusal(shot.name, reply.status, _code_of(reply.read()))
    except (OSError, HTTPException) as error:
        return Refusal(shot.name, 0, f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def _code_of(answer: bytes) -> str:
    try:
        told = json.loads(answer)
    except ValueError:
        return ""
    return str(told.get("code", "")) if isinstance(told, dict) else ""


def _resident_bytes(url: str) -> int:
    text = httpx.get(f"{url}/metrics", timeout=ANSWER_LIMIT_S, trust_env=False).text
    (line,) = [line for line in text.splitlines() if line.startswith("process_resident_memory_bytes")]
    return int(float(line.split()[1]))


# --- the insider


def _registration(coordinator: str) -> tuple[RegisterNode, SigningKey]:
    """Of a node too small for any seat."""
    key = SigningKey.generate()
    capability = NodeCapability(key.node_id, memory_bytes=MEBIBYTE, speed=1.0, slots=1, context_tokens=1)
    proof = make_proof(key, address=NOWHERE, boot_id="b", coordinator=coordinator)
    body = RegisterNode(
        capability=capability,
        address=NOWHERE,
        boot_id="b",
        public_key=key.public_key.hex(),
        proof=SignedText.of(proof),
    )
    return body, key


def _let_in(cluster: Cluster, coordinator: str) -> str:
    body, _ = _registration(coordinator)
    reply = httpx.post(
        f"{coordinator}/nodes",
        content=body.model_dump_json(),
        headers={"authorization": f"Bearer {join_token(cluster)}", "content-type": "application/json"},
        trust_env=False,
    )
    return Registered.model_validate_json(reply.content).node_token


# --- the shots


def _at_coordinator(cluster: Cluster, coordinator: str, node_token: str) -> Iterator[Shot]:
    nodes, messages, token = f"{coordinator}/nodes", f"{coordinator}/messages", join_token(cluster)
    yield Shot("registration by a stranger", nodes, _json(_registration(coordinator)[0]))
    yield Shot("registration with another's proof", nodes, _json(_stolen(coordinator)), token)
    yield Shot("registration for another coordinator", nodes, _json(_registration("http://elsewhere:1")[0]), token)
    yield Shot("registration in another form", nodes, _spaced(coordinator), token)
    yield Shot("registration of a node without end", nodes, _endless(coordinator), token)
    yield Shot("message of a stranger", messages, b'{"type":"leave","boot_id":"b"}')
    yield Shot("receipt of a session that is not there", messages, _receipt("{}"), node_token)
    yield Shot("receipt of a megabyte", messages, _receipt("x" * MEBIBYTE), node_token)
    yield Shot("drafts without end", messages, _drafts(400_000), node_token)
    yield Shot("heartbeat of another run", messages, b'{"type":"heartbeat","boot_id":"other"}', node_token)
    for url, bearer in ((nodes, token), (messages, node_token)):
        yield from _malformed(url, bearer)


def _at_worker(worker: str) -> Iterator[Shot]:
    messages, links = f"{worker}/messages", f"{worker}/links"
    yield Shot("order of a stranger", messages, b'{"type":"drain","reason":"please"}')
    yield Shot("order with a guessed token", messages, b'{"type":"drain","reason":"please"}', "guess")
    yield from _malformed(messages, "guess")
    yield Shot("link of a stranger", links, struct.pack("<4sII", MAGIC, 2**32 - 1, 2**32 - 1))
    yield Shot("frame bomb of a stranger", links, struct.pack("<4sII", MAGIC, 10, 2**32 - 1) + bytes(8 * MEBIBYTE), "x")


def _malformed(url: str, bearer: str) -> Iterator[Shot]:
    where = url.rpartition("/")[2]
    yield Shot(f"nothing to {where}", url, b"", bearer)
    yield Shot(f"half a body to {where}", url, b'{"type":"leave","boot', bearer)
    yield Shot(f"nested lists to {where}", url, DEEP, bearer)
    yield Shot(f"nested objects to {where}", url, b'{"a":' * 100_000, bearer)
    yield Shot(f"NaN to {where}", url, b'{"type":"heartbeat","boot_id":"b","timer_lag_ms":NaN}', bearer)
    yield Shot(f"Infinity to {where}", url, b'{"type":"heartbeat","boot_id":"b","timer_lag_ms":1e999}', bearer)
    yield Shot(
        f"a number of a million digits to {where}", url, b'{"type":"leave","boot_id":' + b"9" * MEBIBYTE + b"}", bearer
    )
    yield Shot(f"no UTF-8 to {where}", url, b'{"type":"\xff\xfe"}', bearer)
    yield Shot(f"an unknown type to {where}", url, b'{"type":"evict"}', bearer)
    yield Shot(f"an unknown field to {where}", url, b'{"type":"leave","boot_id":"b","root":true}', bearer)
    yield Shot(f"64 MiB to {where}", url, bytes(64 * MEBIBYTE), bearer)
    yield Shot(f"announced terabytes to {where}", url, b"{}", bearer, announced_bytes=1 << 40)


def _json(body: RegisterNode) -> bytes:
    return body.model_dump_json().encode()


def _stolen(coordinator: str) -> RegisterNode:
    (body, _), (other, _) = _registration(coordinator), _registration(coordinator)
    return body.model_copy(update={"proof": other.proof})


def _spaced(coordinator: str) -> bytes:
    """A proof that is rightly signed, in a form that is not the canonical one."""
    body, key = _registration(coordinator)
    text = body.proof.text.replace(",", ", ")
    signature = Ed25519PrivateKey.from_private_bytes(key.secret).sign(text.encode())
    return _json(body.model_copy(update={"proof": SignedText(text=text, signature=signature.hex())}))


def _endless(coordinator: str) -> bytes:
    body, _ = _registration(coordinator)
    capability = replace(body.capability, labels=tuple((f"label-{number}", "x" * 100) for number in range(2_000)))
    return _json(body.model_copy(update={"capability": capability}))


def _receipt(text: str) -> bytes:
    body = {"type": "receipt_posted", "task_id": "task-none", "epoch": 1, "lane": 0, "stage": 0, "window": 0}
    return json.dumps({**body, "receipt": {"text": text, "signature": "0" * 128}}).encode()


def _drafts(count: int) -> bytes:
    record = {"token_id": 1, "logit": 0.0, "other_id": 2, "other_logit": 0.0}
    draft = {"task_id": "task-none", "epoch": 1, "first_position": 0, "records": [record] * count}
    return json.dumps({"type": "draft_tokens", "drafts": [draft]}).encode()
