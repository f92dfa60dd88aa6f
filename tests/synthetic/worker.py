"""`python -m tests.synthetic.worker`: a real worker, configured as `services.worker` is, on the synthetic engine.

It loads the stage files of any model and computes `tests.fakes.engine.SyntheticModel` in place of what they hold.
"""

from fastapi import FastAPI

from services.worker.app import assemble
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.serve import serve
from tests.fakes.engine import NUMERICS_CLASS, SyntheticLoader


def create_app(config: Config) -> FastAPI:
    return assemble(config, loader=SyntheticLoader(), numerics_class=NUMERICS_CLASS, clock=SystemClock())


if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
