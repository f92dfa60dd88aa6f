"""Lying workers, one after the other: who is found out comes back as a new node with a new key."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fastapi import FastAPI

from services.worker.clients.coordinator import HttpCoordinator
from services.worker.clients.link import HttpLinkCarrier
from services.worker.domain.identity import Identity
from services.worker.ports import Coordinator, EngineLoader, LinkCarrier, ReceiptSigner
from shared.domain.ids import NodeId
from shared.resilience.http_client import PeerClient, PeerClients
from tests.byzantine.link_faults import FaultyCarrier
from tests.byzantine.seat_watch import SeatWatch
from tests.simulation.world.world import Parts, World
from tests.synthetic.kinds import LieKind
from tests.synthetic.seldom import SeldomLoader, SeldomPlace, SeldomSigner, Told

LOOK_EVERY_S = 0.05
LIES_BEFORE_LEAVING = 5
"""Of a liar that nothing may prove guilty: it comes back under another name to lie at other seats."""


@dataclass
class Liar:
    """One lying node, from its first registration until it may not serve any more."""

    node_id: NodeId
    told: Told


class Liars:
    def __init__(self, world: World, kind: LieKind, *, chance: float, rng: Random) -> None:
        """`chance`: that an honest result, receipt, frame or report becomes a lie."""
        self._world, self._kind, self._chance, self._rng = world, kind, chance, rng
        self.all: list[Liar] = []

    async def live(self, is_over: Callable[[], bool], is_kept_away: Callable[[NodeId], bool]) -> None:
        """Until `is_over`; a new one as soon as the last `is_kept_away`."""
        while not is_over():
            told = Told(is_stubborn=len(self.all) % 2 == 1)
            node_id, process = await self._world.start_worker(self._parts(told))
            liar = Liar(node_id, told)
            self.all.append(liar)
            while not (is_over() or is_kept_away(node_id) or self._leaves(liar)):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(LOOK_EVERY_S)
            await process.stop()

    def _leaves(self, liar: Liar) -> bool:
        return not self._kind.is_convicted and liar.told.lies >= LIES_BEFORE_LEAVING

    def _parts(self, told: Told) -> Parts:
        kind, chance, rng = self._kind, self._chance, self._rng
        place = SeldomPlace(chance=chance, rng=rng, told=told)
        loader: EngineLoader = self._world.loader()
        if kind.fault is not None:
            loader = SeldomLoader(loader, kind.fault, chance=chance, rng=rng, told=told)

        def make_signer(identity: Identity) -> ReceiptSigner:
            return SeldomSigner(identity, kind.make_signer, chance=chance, rng=rng, told=told)

        def make_carrier(peers: PeerClients) -> LinkCarrier:
            honest = HttpLinkCarrier(peers)
            return honest if kind.link_fault is None else FaultyCarrier(honest, kind.link_fault, place)

        def make_coordinator(client: PeerClient, join_token: str, identity: Identity) -> Coordinator:
            honest = HttpCoordinator(client, join_token)
            return honest if kind.wrap_coordinator is None else kind.wrap_coordinator(honest, identity, place)

        def wrap_app(app: FastAPI) -> FastAPI:
            app.add_middleware(SeatWatch, place=place)
            return app

        watches = kind.link_fault is not None or kind.wrap_coordinator is not None
        return Parts(loader, make_signer, make_carrier, make_coordinator, wrap_app if watches else None)
