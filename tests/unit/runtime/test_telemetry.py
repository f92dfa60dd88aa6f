"""How long the control services leave one another alone after failures."""

import pytest

from shared.contracts.problem import Ack
from shared.domain.errors import CircuitOpen, PeerUnavailable
from shared.runtime.config import Config, ServicesConfig
from shared.runtime.statuses import retry_after
from shared.runtime.telemetry import Telemetry
from tests.fakes.clock import FakeClock

NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("name", "url", "within_s"), [("scheduler", NOBODY, (2, 5)), ("node-a", NOBODY + "/", (48, 60))]
)
async def test_clients_are_told_to_come_back_soon_after_a_control_service_and_later_after_a_worker(
    name: str, url: str, within_s: tuple[int, int]
) -> None:
    config = Config(services=ServicesConfig(scheduler_url=NOBODY))
    telemetry = Telemetry(source="api", address="127.0.0.1:8080", config=config, clock=FakeClock())
    async with telemetry.running():
        peer = telemetry.peers.get(name, url)
        for _ in range(5):
            with pytest.raises(PeerUnavailable):
                await peer.post("/tasks", None, Ack)
        with pytest.raises(CircuitOpen) as refused:
            await peer.post("/tasks", None, Ack)
    told = retry_after(refused.value, jitter=0.25)
    assert told is not None
    assert within_s[0] <= int(told) <= within_s[1]
