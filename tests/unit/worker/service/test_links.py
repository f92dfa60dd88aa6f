import asyncio
import struct
from collections.abc import AsyncIterator, Sequence

import pytest

from services.worker.service import incoming_links
from services.worker.service.incoming_links import SILENCE_S, IncomingLinks
from services.worker.service.outgoing_links import OutgoingLink
from services.worker.service.seating import Seating
from shared.contracts.frame import Frame, FrameKind, FrameReader, encode_frame
from shared.contracts.messages import LinkFault, Peer
from shared.domain.errors import InvalidCredentials, PeerUnavailable, ProtocolViolation, Unavailable
from shared.domain.ids import NodeId
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.clock import FakeClock
from tests.fakes.worker_parts import MemoryCluster, Order, wait_until

PEER = Peer(node_id=NodeId("a"), address="http://a", link_token="secret")


class Bench:
    def __init__(self) -> None:
        self.taken: list[tuple[NodeId, FrameKind]] = []
        self.clock = FakeClock()
        self.max_payload_bytes = 0
        self.links = IncomingLinks(
            take=self._take,
            max_payload_bytes=lambda: self.max_payload_bytes,
            seating=Seating(),
            report=lambda _report, _to: None,
            clock=self.clock,
        )

    def _take(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        self.taken += [(peer, frame.kind) for frame in frames]


async def chunks_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


END = encode_frame(Frame(FrameKind.END))
KEEP_ALIVE = encode_frame(Frame(FrameKind.KEEP_ALIVE))


async def test_frames_are_taken_wherever_the_chunks_are_cut() -> None:
    bench = Bench()
    bench.links.expect(PEER)
    data = KEEP_ALIVE + END
    await bench.links.receive("secret", chunks_of(*(data[at : at + 7] for at in range(0, len(data), 7))))
    assert bench.taken == [(PEER.node_id, FrameKind.KEEP_ALIVE), (PEER.node_id, FrameKind.END)]
    assert bench.links.peers == ()


async def test_a_link_may_come_before_the_assignment_that_names_it() -> None:
    bench = Bench()
    link = asyncio.ensure_future(bench.links.receive("secret", chunks_of(END)))
    await asyncio.sleep(0)
    bench.links.expect(PEER)
    await link
    assert bench.taken == [(PEER.node_id, FrameKind.END)]


async def test_a_link_that_no_assignment_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_links, "ASSIGNMENT_PATIENCE_S", 0.01)
    bench = Bench()
    with pytest.raises(InvalidCredentials):
        await bench.links.receive("stolen", chunks_of(KEEP_ALIVE))
    assert bench.taken == []


async def test_bytes_that_are_no_frame_close_the_link() -> None:
    bench = Bench()
    bench.links.expect(PEER)
    with pytest.raises(ProtocolViolation):
        await bench.links.receive("secret", chunks_of(b"GET / HTTP/1.1\r\n"))


async def test_a_silent_link_is_dropped_and_one_that_speaks_is_kept() -> None:
    bench = Bench()
    bench.links.expect(PEER)
    spoken: asyncio.Queue[bytes] = asyncio.Queue()
    tasks = BackgroundTasks(bench.clock)
    tasks.loop("silence", bench.links.watch)

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield await spoken.get()

    link = tasks.start(bench.links.receive("secret", chunks()), name="link")
    for _ in range(4):
        spoken.put_nowait(KEEP_ALIVE)
        await bench.clock.advance(SILENCE_S / 3)
    assert not link.done()
    await bench.clock.advance(2 * SILENCE_S)
    await wait_until(link.done)
    assert bench.links.peers == ()
    await tasks.stop(1.0)


async def test_what_waits_is_sent_in_one_chunk_and_the_end_comes_last() -> None:
    link = OutgoingLink(PEER)
    link.send(b"one")
    link.send(b"two")
    link.end()
    assert [chunk async for chunk in link.chunks()] == [b"onetwo" + END]


async def test_a_link_says_something_only_after_silence() -> None:
    link = OutgoingLink(PEER)
    link.send(KEEP_ALIVE)
    link.keep_alive()
    link.keep_alive()
    link.end()
    sent = b"".join([chunk async for chunk in link.chunks()])
    kinds = [frame.kind for frame in FrameReader().feed(sent)]
    assert kinds == [FrameKind.KEEP_ALIVE, FrameKind.KEEP_ALIVE, FrameKind.END]


async def test_a_link_whose_peer_takes_nothing_is_full_at_last() -> None:
    link = OutgoingLink(PEER)
    link.send(bytes(60 * 1024 * 1024))
    with pytest.raises(PeerUnavailable):
        link.send(bytes(5 * 1024 * 1024))


async def test_all_sessions_between_two_workers_share_one_link() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        orders = [Order(f"t{number}", (1, 2, 3), 4, ["a", "b"]) for number in range(3)]
        await asyncio.gather(*(cluster.run(order) for order in orders))
        assert cluster["a"].outgoing.peers == ("b",)
        assert cluster["b"].incoming.peers == ("a",)


async def test_a_worker_that_stops_ends_its_links_without_a_fault() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        order = Order("task", (1, 2, 3), 300, ["a", "b"])
        await cluster.assign(order)
        cluster["a"].outgoing.close()
        await wait_until(lambda: not cluster["b"].incoming.peers)
        assert cluster["b"].outbox.num_waiting == 0
        assert cluster.coordinator.told == []


async def test_what_no_honest_node_sends_is_reported_as_refused_and_not_as_a_broken_link() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        order = Order("task", (1, 2, 3), 300, ["a", "b"])
        await cluster.assign(order)
        previous = cluster.assignment(order, 1).previous
        assert previous is not None
        with pytest.raises(ProtocolViolation):
            await cluster["b"].incoming.receive(previous.link_token, chunks_of(b"GET / HTTP/1.1\r\n"))
        await wait_until(lambda: any(isinstance(said, LinkFault) for said in cluster.coordinator.told))
        faults = [said for said in cluster.coordinator.told if isinstance(said, LinkFault)]
        assert [(fault.peer, fault.kind) for fault in faults] == [("a", "refused")]


async def spoken(words: "asyncio.Queue[bytes]") -> AsyncIterator[bytes]:
    while True:
        yield await words.get()


async def test_a_peer_that_opens_links_again_and_again_has_one() -> None:
    bench, tasks = Bench(), BackgroundTasks()
    bench.links.expect(PEER)
    words = [asyncio.Queue[bytes]() for _ in range(20)]
    links = [tasks.start(bench.links.receive("secret", spoken(queue)), name="link") for queue in words]
    await wait_until(lambda: all(link.done() for link in links[:-1]))
    words[-1].put_nowait(KEEP_ALIVE)
    await wait_until(lambda: bench.taken != [])
    assert not links[-1].done()
    assert bench.links.peers == (PEER.node_id,)
    await tasks.stop(1.0)


async def test_a_frame_larger_than_any_stage_takes_is_refused_before_it_is_there() -> None:
    bench = Bench()
    bench.links.expect(PEER)
    bench.max_payload_bytes = 64 * 16
    with pytest.raises(ProtocolViolation, match="exceeds the limit"):
        await bench.links.receive("secret", chunks_of(struct.pack("<4sII", b"BFL1", 10, 64 * 16 + 1)))


async def test_of_too_many_links_the_oldest_that_feeds_no_seat_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_links, "MAX_LINKS", 2)
    bench, tasks = Bench(), BackgroundTasks()
    for name in "abc":
        bench.links.expect(Peer(node_id=NodeId(name), address="http://a", link_token=name))
        _ = tasks.start(bench.links.receive(name, spoken(asyncio.Queue())), name="link")
        await wait_until(lambda name=name: name in bench.links.peers)  # type: ignore[misc]
    assert bench.links.peers == ("b", "c")
    await tasks.stop(1.0)


async def test_links_that_feed_seats_give_way_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_links, "MAX_LINKS", 1)
    async with MemoryCluster("a", "b").running() as cluster:
        await cluster.assign(Order("task", (1, 2, 3), 300, ["a", "b"]))
        links = cluster["b"].incoming
        await wait_until(lambda: links.peers == ("a",))
        links.expect(Peer(node_id=NodeId("c"), address="http://c", link_token="other"))
        with pytest.raises(Unavailable):
            await links.receive("other", chunks_of(KEEP_ALIVE))
        assert links.peers == ("a",)


async def test_a_token_that_was_replaced_opens_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_links, "ASSIGNMENT_PATIENCE_S", 0.01)
    bench = Bench()
    bench.links.expect(PEER)
    bench.links.expect(Peer(node_id=PEER.node_id, address="http://a", link_token="fresh"))
    with pytest.raises(InvalidCredentials):
        await bench.links.receive("secret", chunks_of(KEEP_ALIVE))
