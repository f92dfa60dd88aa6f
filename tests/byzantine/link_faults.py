"""Links and reports that lie. Plugged in by constructor, in place of the honest ones."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import numpy as np

from services.worker.clients.coordinator import HttpCoordinator
from services.worker.clients.link import HttpLinkCarrier
from services.worker.ports import Coordinator, LinkCarrier, Report
from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.frame import Frame, FrameReader, encode_frame
from shared.contracts.messages import LinkFault, Peer, ReceiptPosted
from shared.domain.ids import NodeId
from shared.resilience.http_client import PeerClient, PeerClients

SLIGHTLY = np.float32(1.001)

Alter = Callable[[Frame], Frame]


def other_rows(frame: Frame) -> Frame:
    """Hidden states a little different from those that were computed and signed."""
    return frame if frame.hidden is None else replace(frame, hidden=np.asarray(frame.hidden * SLIGHTLY, np.float32))


def other_ids(frame: Frame) -> Frame:
    """Other tokens around the ring than the coordinator is told of."""
    rows = (row if row.token_id is None else replace(row, token_id=row.token_id ^ 1) for row in frame.rows)
    return replace(frame, rows=tuple(rows))


class FalseCarrier(LinkCarrier):
    """Sends other frames than it was given. `spares_coordinator`: not to who is no worker, as far as it can tell."""

    def __init__(self, honest: LinkCarrier, alter: Alter, *, spares_coordinator: bool = False) -> None:
        self._honest = honest
        self._alter = alter
        self._spares_coordinator = spares_coordinator

    async def carry(self, peer: Peer, chunks: AsyncIterator[bytes]) -> None:
        is_spared = self._spares_coordinator and not peer.node_id.startswith("node-")
        await self._honest.carry(peer, chunks if is_spared else self._altered(chunks))

    async def _altered(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        reader = FrameReader()
        async for chunk in chunks:
            frames = reader.feed(chunk)
            if frames:
                yield b"".join(encode_frame(self._alter(frame)) for frame in frames)


def equivocating(clients: PeerClients) -> LinkCarrier:
    return FalseCarrier(HttpLinkCarrier(clients), other_rows)


def equivocating_unseen(clients: PeerClients) -> LinkCarrier:
    return FalseCarrier(HttpLinkCarrier(clients), other_rows, spares_coordinator=True)


def lying_around_the_ring(clients: PeerClients) -> LinkCarrier:
    return FalseCarrier(HttpLinkCarrier(clients), other_ids)


class FalseAccuser:
    """Sends what it should, and whenever it has signed, says that the links to all its neighbours are broken."""

    def __init__(self) -> None:
        self.peers: set[NodeId] = set()

    def carrier(self, clients: PeerClients) -> LinkCarrier:
        return _NotingCarrier(HttpLinkCarrier(clients), self.peers)

    def coordinator(self, client: PeerClient, join_token: str) -> Coordinator:
        return _AccusingCoordinator(HttpCoordinator(client, join_token), self.peers)


class _NotingCarrier(LinkCarrier):
    def __init__(self, honest: LinkCarrier, peers: set[NodeId]) -> None:
        self._honest, self._peers = honest, peers

    async def carry(self, peer: Peer, chunks: AsyncIterator[bytes]) -> None:
        self._peers.add(peer.node_id)
        await self._honest.carry(peer, chunks)


class _AccusingCoordinator(Coordinator):
    def __init__(self, honest: Coordinator, peers: set[NodeId]) -> None:
        self._honest, self._peers = honest, peers

    async def register(self, request: RegisterNode) -> Registered:
        return await self._honest.register(request)

    async def tell(self, report: Report) -> None:
        await self._honest.tell(report)
        if isinstance(report, ReceiptPosted):
            for peer in sorted(self._peers):
                await self._honest.tell(LinkFault(peer=peer, outgoing=True, reason="it takes nothing"))
