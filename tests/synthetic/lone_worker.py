"""`python -m tests.synthetic.lone_worker`: as `tests.synthetic.worker`, but it says that its machine is its own.

Nodes of one machine share its cores, so the planner sees no use in several pipelines there.
"""

from fastapi import FastAPI

from services.worker.app import assemble
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.serve import serve
from tests.fakes.engine import NUMERICS_CLASS, SyntheticLoader


def create_app(config: Config) -> FastAPI:
    return assemble(
        config,
        loader=SyntheticLoader(),
        numerics_class=NUMERICS_CLASS,
        clock=SystemClock(),
        host=config.network.listen_address,
    )


if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
