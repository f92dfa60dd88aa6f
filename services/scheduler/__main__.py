"""python -m services.scheduler"""

from services.scheduler.app import create_app
from shared.runtime.serve import serve

if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.scheduling.bind_address, service="scheduler")
