"""`python -S healthcheck.py`: exit code 0 when the service of this container answers /readyz with 200.

Stands alone and imports little, for it runs every five seconds in every container. The address is that of the bind
variable which the container was given: each service has exactly one.
"""

import os
import socket
import sys

BIND_VARIABLES = (
    "BUTTERFLY_API__BIND_ADDRESS",
    "BUTTERFLY_SCHEDULING__BIND_ADDRESS",
    "BUTTERFLY_PARTITION__BIND_ADDRESS",
    "BUTTERFLY_COORDINATION__BIND_ADDRESS",
    "BUTTERFLY_METRICS__BIND_ADDRESS",
    "BUTTERFLY_NETWORK__LISTEN_ADDRESS",
)
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where a service listens on all addresses
TIMEOUT_S = 3.0
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def main() -> str | None:
    """None when ready, else why not."""
    addresses = [os.environ[name] for name in BIND_VARIABLES if name in os.environ]  # noqa: TID251  stands alone
    if len(addresses) != 1:
        return f"one of {', '.join(BIND_VARIABLES)} should be set in this container, not {len(addresses)}"
    bound, _, port = addresses[0].rpartition(":")
    host = bound.strip("[]")
    try:
        with socket.create_connection((LOOPBACK.get(host, host), int(port)), timeout=TIMEOUT_S) as connection:
            connection.sendall(REQUEST)
            answer = connection.recv(4096)
    except OSError as error:
        return f"{addresses[0]}: {error}"
    status, _, rest = answer.partition(b"\r\n")
    return (
        None
        if status.split(b" ")[1:2] == [b"200"]
        else f"{addresses[0]}: {(status + rest[-500:]).decode(errors='replace')}"
    )


if __name__ == "__main__":
    sys.exit(main())
