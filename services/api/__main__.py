"""python -m services.api"""

from services.api.app import create_app
from shared.runtime.serve import serve

if __name__ == "__main__":
    serve(create_app, bind=lambda config: config.api.bind_address, service="api")
