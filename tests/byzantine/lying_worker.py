"""`python -m tests.byzantine.lying_worker ATTACK`: a real worker, configured as `services.worker` is, that lies."""

import os
import sys

from fastapi import FastAPI

# Before the engine's library is loaded, as in services.worker.
os.environ.setdefault("GOMP_SPINCOUNT", "300")

from services.worker.app import assemble
from services.worker.engine.loader import LlamaLoader
from services.worker.engine.self_test import FileSelfTestCache
from services.worker.stores.machine import usable_cores
from shared.llama.library import load_library
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.serve import serve
from tests.byzantine.attacks import ATTACKS
from tests.byzantine.engine_faults import FaultyLoader


def create_app(config: Config) -> FastAPI:
    attack = ATTACKS[sys.argv[1]]
    clock = SystemClock()
    library = load_library()
    files_dir = config.worker.data_dir / "stages"
    files_dir.mkdir(parents=True, exist_ok=True)
    cores = config.worker.threads or usable_cores()
    honest = LlamaLoader(library, self_tests=FileSelfTestCache(files_dir), n_threads=cores, now=clock.now_s)
    loader = honest if attack.fault is None else FaultyLoader(honest, attack.fault)
    return assemble(
        config, loader=loader, numerics_class=library.build_class, clock=clock, make_signer=attack.make_signer
    )


if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
