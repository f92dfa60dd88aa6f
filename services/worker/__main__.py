"""`python -m services.worker`: one node."""

import os

from services.worker.app import create_app
from shared.runtime.serve import serve

# Read by libraries when they are loaded, which create_app does; too early for a setting of ours.
# The spin count: workers that share a machine are six times slower with the default (docs/decisions/0006).
# The backtrace: an abort of the engine's library would start a debugger and keep a dead worker for seconds.
for name, value in (("GOMP_SPINCOUNT", "300"), ("GGML_NO_BACKTRACE", "1")):
    os.environ.setdefault(name, value)  # noqa: TID251

if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
