"""`python -m tests.byzantine.lying_worker ATTACK --stage S --role executor|auditor`: a real worker, configured as
`services.worker` is, that lies at one seat. What it told there stands in `lies.jsonl` of its data folder."""

import argparse
import os
import sys

from fastapi import FastAPI

# Before the engine's library is loaded, as in services.worker.
os.environ.setdefault("GOMP_SPINCOUNT", "300")

from services.worker.app import assemble, llama_loader
from services.worker.clients.coordinator import HttpCoordinator
from services.worker.clients.link import HttpLinkCarrier
from services.worker.domain.identity import Identity
from services.worker.ports import Coordinator, EngineLoader, LinkCarrier, ReceiptSigner
from services.worker.service.receipts import KeySigner
from services.worker.stores.node_identity import load_identity
from shared.llama.library import Library, load_library
from shared.resilience.http_client import PeerClient, PeerClients
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.serve import serve
from tests.byzantine.attacks import ATTACKS, Attack
from tests.byzantine.engine_faults import FaultyLoader
from tests.byzantine.link_faults import FaultyCarrier
from tests.byzantine.other_models import OtherModelLoader
from tests.byzantine.roles import LIES, ROLES
from tests.byzantine.seat_watch import Place, SeatSigner, SeatWatch


def create_app(config: Config) -> FastAPI:
    asked = _parser().parse_args(sys.argv[1:])
    attack = ATTACKS[asked.attack]
    data_dir = config.worker.data_dir
    place = Place(lane=ROLES[asked.role], stage=asked.stage, sleeps_tasks=attack.sleeps_tasks, told=data_dir / LIES)
    identity = load_identity(data_dir)
    clock = SystemClock()
    library = load_library()

    def make_signer(own: Identity) -> ReceiptSigner:
        lying = None if attack.make_signer is None else attack.make_signer(own)
        return SeatSigner(KeySigner(own), lying, place)

    def make_carrier(peers: PeerClients) -> LinkCarrier:
        honest = HttpLinkCarrier(peers)
        return honest if attack.link_fault is None else FaultyCarrier(honest, attack.link_fault, place)

    def make_coordinator(client: PeerClient, join_token: str) -> Coordinator:
        honest = HttpCoordinator(client, join_token)
        return honest if attack.wrap_coordinator is None else attack.wrap_coordinator(honest, identity, place)

    app = assemble(
        config,
        loader=_loader(attack, llama_loader(config, library, clock), library, place),
        numerics_class=library.build_class,
        clock=clock,
        make_signer=make_signer,
        make_carrier=make_carrier,
        make_coordinator=make_coordinator,
    )
    app.add_middleware(SeatWatch, place=place)
    return app


def _loader(attack: Attack, honest: EngineLoader, library: Library, place: Place) -> EngineLoader:
    if attack.other_model is not None:
        return OtherModelLoader(honest, attack.other_model, library, place)
    return honest if attack.fault is None else FaultyLoader(honest, attack.fault, place)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.byzantine.lying_worker", description=__doc__)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--role", choices=ROLES, required=True)
    return parser


if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
