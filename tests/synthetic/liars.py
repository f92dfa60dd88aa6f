"""Lying workers, one after the other: who is found out comes back as a new node with a new key."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import uvicorn
from fastapi import FastAPI

from services.worker.app import assemble
from services.worker.domain.identity import Identity
from services.worker.ports import EngineLoader, ReceiptSigner
from services.worker.stores.node_identity import load_identity
from shared.domain.ids import NodeId
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config, load_config
from shared.runtime.serve import listen
from tests.fakes.engine import NUMERICS_CLASS, SyntheticLoader
from tests.synthetic.cluster import SyntheticCluster
from tests.synthetic.kinds import LieKind
from tests.synthetic.seldom import SeldomLoader, SeldomSigner, Told

LOOK_EVERY_S = 0.1
LIES_BEFORE_LEAVING = 5
"""Of a liar that nothing may prove guilty: it comes back under another name to lie at other seats."""


@dataclass
class Liar:
    """One lying node, from its first registration until it may not serve any more."""

    node_id: NodeId
    told: Told


class Liars:
    """Served in this process over real HTTP, so that what they tell can be counted."""

    def __init__(self, cluster: SyntheticCluster, kind: LieKind, *, chance: float, rng: Random) -> None:
        """`chance`: that an honest result or receipt becomes a lie."""
        self._cluster, self._kind, self._chance, self._rng = cluster, kind, chance, rng
        self.all: list[Liar] = []

    async def live(self, is_over: Callable[[], bool], is_kept_away: Callable[[NodeId], bool]) -> None:
        """Until `is_over`; a new one as soon as the last `is_kept_away`."""
        while not is_over():
            config = self._config()
            told = Told(is_stubborn=len(self.all) % 2 == 1)
            liar = Liar(load_identity(config.worker.data_dir).node_id, told)
            self.all.append(liar)
            app = self._assemble(config, told)
            listener = listen(config.network.listen_address, key="network.listen_address")
            server = uvicorn.Server(
                uvicorn.Config(app, http="httptools", lifespan="on", access_log=False, log_config=None)
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(server._serve(sockets=[listener]))  # `serve` would take over the signals
                while not (is_over() or is_kept_away(liar.node_id) or self._leaves(liar)):  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(LOOK_EVERY_S)
                app.state.draining.set()
                server.should_exit = True

    def _leaves(self, liar: Liar) -> bool:
        return not self._kind.is_convicted and liar.told.lies >= LIES_BEFORE_LEAVING

    def _config(self) -> Config:
        data_dir = self._cluster.data_dir / "liars" / str(len(self.all))
        return load_config(None, self._cluster.worker_environment(self._cluster.spare_address, data_dir))

    def _assemble(self, config: Config, told: Told) -> FastAPI:
        kind, chance, rng = self._kind, self._chance, self._rng
        loader: EngineLoader = SyntheticLoader()
        if kind.fault is not None:
            loader = SeldomLoader(loader, kind.fault, chance=chance, rng=rng, told=told)

        def make_signer(identity: Identity) -> ReceiptSigner:
            return SeldomSigner(identity, kind.make_signer, chance=chance, rng=rng, told=told)

        return assemble(
            config, loader=loader, numerics_class=NUMERICS_CLASS, clock=SystemClock(), make_signer=make_signer
        )
