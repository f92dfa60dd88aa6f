"""python -m services.metrics"""

from services.metrics.app import create_app
from shared.runtime.serve import serve

if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.metrics.bind_address, service="metrics")
