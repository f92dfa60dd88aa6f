"""`python -m services.worker`: one node."""

import os

from services.worker.app import create_app
from shared.runtime.serve import serve

# libgomp reads it when it is loaded, which create_app does. Several workers on one machine with the default, which
# spins at each barrier, are six times slower (engine.md section 9); a single process loses nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "300")  # noqa: TID251  not a setting of ours, and too early for one

if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.network.listen_address, service="worker")
