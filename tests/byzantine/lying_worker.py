"""`python -m tests.byzantine.lying_worker ATTACK`: a real worker, configured as `services.worker` is, that lies.

`colluding FILE`: at the stage that FILE names, once it is there (`engine_faults.Colluding`).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI

# Before the engine's library is loaded, as in services.worker.
os.environ.setdefault("GOMP_SPINCOUNT", "300")

from services.worker.app import assemble, llama_loader
from shared.llama.library import load_library
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.serve import serve
from tests.byzantine.attacks import ATTACKS, Attack
from tests.byzantine.engine_faults import Colluding, FaultyLoader


def attack_of(arguments: Sequence[str]) -> Attack:
    match arguments:
        case ["colluding", agreement]:
            return Attack("lies where its friend sits in the other lane", Colluding(Path(agreement)))
        case [name]:
            return ATTACKS[name]
        case _:
            raise SystemExit(__doc__)


def create_app(config: Config) -> FastAPI:
    attack = attack_of(sys.argv[1:])
    clock = SystemClock()
    library = load_library()
    honest = llama_loader(config, library, clock)
    loader = honest if attack.fault is None else FaultyLoader(honest, attack.fault)
    return assemble(
        config,
        loader=loader,
        numerics_class=library.build_class,
        clock=clock,
        make_signer=attack.make_signer,
        make_carrier=attack.make_carrier,
        make_coordinator=attack.make_coordinator,
    )


if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
