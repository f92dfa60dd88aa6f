"""python -m services.coordinator"""

from services.coordinator.app import create_app
from shared.runtime.serve import serve

if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.coordination.bind_address, service="coordinator")
