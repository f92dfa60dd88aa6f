"""What a link through the coordinator passes on, and what ends it."""

import asyncio
from array import array
from collections.abc import AsyncIterator

import pytest

from services.coordinator.domain.witness import Hop, Witness
from services.coordinator.service import relays as relays_module
from services.coordinator.service.relays import MAX_RELAYS, Detour, Relays
from shared.contracts.frame import Frame, FrameKind, Row, encode_frame
from shared.domain.errors import InvalidCredentials, PeerUnavailable, ProtocolViolation
from shared.domain.hidden import HiddenRows
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.windows import Window
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.links import FakeLinks

WIDTH = 4
TASK, SENDER, RECEIVER = TaskId("task"), NodeId("a"), NodeId("b")
END = encode_frame(Frame(FrameKind.END))
KEEP_ALIVE = encode_frame(Frame(FrameKind.KEEP_ALIVE))


class Bench:
    def __init__(self) -> None:
        self.links, self.tasks = FakeLinks(), BackgroundTasks()
        tokens = iter(range(10_000))
        self.relays = Relays(
            links=self.links, tasks=self.tasks, new_token=lambda: f"token-{next(tokens)}", name="replica"
        )
        detour = self.open()
        assert detour is not None
        self.detour = detour
        self.token = detour.next.link_token

    def open(self) -> Detour | None:
        witness = Witness(
            Hop(0, 1, SENDER, RECEIVER),
            task_id=TASK,
            epoch=Epoch(2),
            boundary=2,
            model_root="ab" * 32,
            numerics_hash="cd" * 32,
            window=Window(1, 2, 6),
        )
        return self.relays.open(witness, own_address="http://c", receiver_address="http://b", width=WIDTH)

    async def receive(self, *chunks: bytes) -> None:
        await self.relays.receive(self.token, chunks_of(*chunks))
        await self.ended()

    async def ended(self) -> None:
        async with asyncio.timeout(5):
            await self.links.all_ended()

    @property
    def kinds(self) -> list[FrameKind]:
        return [frame.kind for frame in self.links.frames]

    @property
    def rows(self) -> int:
        return self.detour.witness.passage().row_end


async def chunks_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def silence() -> AsyncIterator[bytes]:
    yield KEEP_ALIVE
    await asyncio.Event().wait()


def rows(first: int, count: int, *, width: int = WIDTH, kind: FrameKind = FrameKind.PREFILL, **place: object) -> bytes:
    values: dict[str, object] = {"lane": 0, "stage": 1, "task_id": TASK, "epoch": Epoch(2)} | place
    hidden = HiddenRows(array("f", range(first, first + count * width)).tobytes(), width)
    row = Row(values["task_id"], values["epoch"], first)  # type: ignore[arg-type]
    return encode_frame(Frame(kind, values["lane"], values["stage"], rows=(row,), hidden=hidden))  # type: ignore[arg-type]


async def test_frames_pass_however_the_chunks_are_cut_and_are_counted() -> None:
    bench = Bench()
    data = KEEP_ALIVE + rows(0, 3) + rows(3, 1, kind=FrameKind.DECODE) + END
    await bench.receive(*(data[at : at + 7] for at in range(0, len(data), 7)))
    assert bench.kinds == [FrameKind.KEEP_ALIVE, FrameKind.PREFILL, FrameKind.DECODE, FrameKind.END]
    assert bench.rows == 4
    assert bench.links.opened == [(RECEIVER, "http://b", bench.detour.previous.link_token)]


@pytest.mark.parametrize(
    "frame",
    [
        rows(1, 1),
        rows(0, 7),
        rows(0, 1, width=WIDTH + 1),
        rows(0, 2, kind=FrameKind.DECODE),
        rows(0, 1, lane=1),
        rows(0, 1, stage=2),
        rows(0, 1, epoch=1),
        rows(0, 1, task_id="another"),
        encode_frame(Frame(FrameKind.TOKENS, 0, 1, rows=(Row(TASK, Epoch(2), 0, 5),))),
        encode_frame(Frame(FrameKind.PREFILL, 0, 1)),
        b"GET / HTTP/1.1\r\n",
    ],
    ids=["a gap", "too many", "too wide", "no single row", "lane", "stage", "epoch", "task", "tokens", "none", "bytes"],
)
async def test_what_does_not_belong_there_ends_the_link_and_does_not_pass(frame: bytes) -> None:
    bench = Bench()
    with pytest.raises(ProtocolViolation):
        await bench.receive(KEEP_ALIVE, frame, rows(0, 1))
    await bench.ended()
    assert FrameKind.END not in bench.kinds  # so the receiver says that it broke
    assert set(bench.kinds) <= {FrameKind.KEEP_ALIVE}
    assert bench.rows == 0


async def test_a_token_opens_one_link() -> None:
    bench = Bench()
    await bench.receive(END)
    with pytest.raises(ProtocolViolation):
        await bench.receive(rows(0, 1))
    with pytest.raises(InvalidCredentials):
        await bench.relays.receive(bench.detour.previous.link_token, chunks_of(END))


async def test_a_receiver_that_takes_nothing_holds_up_the_sender() -> None:
    bench = Bench()
    release = asyncio.Event()

    async def carry(node_id: NodeId, address: str, token: str, chunks: AsyncIterator[bytes]) -> None:
        await release.wait()
        await FakeLinks.carry(bench.links, node_id, address, token, chunks)

    bench.links.carry = carry  # type: ignore[method-assign]
    asked = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal asked
        for first in range(4):
            asked += 1
            yield rows(first, 1)
        yield END

    link = asyncio.ensure_future(bench.relays.receive(bench.token, chunks()))
    for _ in range(50):
        await asyncio.sleep(0)
    assert asked == 1
    release.set()
    await link
    assert (asked, bench.rows) == (4, 4)


async def test_a_receiver_that_is_gone_ends_the_link_of_the_sender() -> None:
    bench = Bench()
    bench.links.is_away = True
    with pytest.raises(PeerUnavailable):
        await bench.relays.receive(bench.token, silence())


async def test_a_silent_sender_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays_module, "SILENCE_S", 0.01)
    bench = Bench()
    with pytest.raises(PeerUnavailable):
        await bench.relays.receive(bench.token, silence())
    await bench.ended()
    assert bench.kinds == [FrameKind.KEEP_ALIVE]


async def test_a_closed_relay_ends_both_halves_on_purpose_and_its_token_is_worth_nothing() -> None:
    bench = Bench()
    link = asyncio.ensure_future(bench.relays.receive(bench.token, silence()))
    await bench.links.came(1)
    bench.relays.close_all()
    await link
    await bench.ended()
    assert bench.kinds == [FrameKind.KEEP_ALIVE, FrameKind.END]
    with pytest.raises(InvalidCredentials):
        await bench.relays.receive(bench.token, chunks_of(END))
    bench.relays.close(bench.detour)


async def test_ids_are_used_again_and_there_are_so_many_at_most() -> None:
    bench = Bench()
    others = [bench.open() for _ in range(MAX_RELAYS - 1)]
    assert len({each.next.node_id for each in others if each} | {bench.detour.next.node_id}) == MAX_RELAYS
    assert bench.open() is None
    bench.relays.close(bench.detour)
    again = bench.open()
    assert again is not None
    assert again.next.node_id == bench.detour.next.node_id
    assert again.next.link_token != bench.token


async def test_a_relay_stands_for_the_node_at_its_other_end() -> None:
    bench = Bench()
    relay_id = bench.detour.next.node_id
    assert bench.relays.beyond(relay_id, SENDER) == (TASK, RECEIVER)
    assert bench.relays.beyond(relay_id, RECEIVER) == (TASK, SENDER)
    assert bench.relays.beyond(relay_id, NodeId("c")) is None
    assert bench.relays.beyond(SENDER, RECEIVER) is None
