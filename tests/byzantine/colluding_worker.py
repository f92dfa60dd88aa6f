"""`python -m tests.byzantine.colluding_worker FILE`: a real worker that lies wherever the stage is that FILE names, as
soon as it is there. Workers that share the file are a coalition that knows where it sits."""

import os
import sys
from pathlib import Path

from fastapi import FastAPI

# Before the engine's library is loaded, as in services.worker.
os.environ.setdefault("GOMP_SPINCOUNT", "300")

from services.worker.app import assemble, llama_loader
from shared.contracts.messages import StageRef
from shared.llama.library import load_library
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.serve import serve
from tests.byzantine.engine_faults import FaultyLoader, WrongHidden
from tests.byzantine.roles import LIES
from tests.byzantine.seat_watch import Place


class AgreedStage(Place):
    """Every seat over the stage that a file names by its first layer; none without the file."""

    def __init__(self, agreement: Path, told: Path) -> None:
        super().__init__(lane=-1, stage=-1, sleeps_tasks=0, told=told)
        self._agreement = agreement

    def lies_in(self, ref: StageRef) -> bool:
        return self._agreement.exists() and int(self._agreement.read_text()) == ref.layers.start


def create_app(config: Config) -> FastAPI:
    clock = SystemClock()
    library = load_library()
    place = AgreedStage(Path(sys.argv[1]), config.worker.data_dir / LIES)
    loader = FaultyLoader(llama_loader(config, library, clock), WrongHidden(), place)
    return assemble(config, loader=loader, numerics_class=library.build_class, clock=clock)


if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
