"""`python -m bench.lone_worker`: a worker that says that its machine is its own.

Stages of one machine take turns, those of several work at once: by this a machine stands for several, if its workers
are limited to parts of it (`tests.e2e.cpu_shares`).
"""

from fastapi import FastAPI

from services.worker import __main__ as worker  # sets what the engine's library reads when it is loaded
from services.worker.app import assemble, llama_loader
from shared.llama.library import load_library
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.serve import serve

SERVICE = worker.__name__.split(".")[1]


def create_app(config: Config) -> FastAPI:
    library, clock = load_library(), SystemClock()
    return assemble(
        config,
        loader=llama_loader(config, library, clock),
        numerics_class=library.build_class,
        clock=clock,
        host=config.network.listen_address,
    )


if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service=SERVICE)
