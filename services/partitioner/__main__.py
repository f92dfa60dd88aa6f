"""`python -m services.partitioner`."""

from services.partitioner.app import create_app
from shared.runtime.serve import serve

if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.partition.bind_address, service="partitioner")
