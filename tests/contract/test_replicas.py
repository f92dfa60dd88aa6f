"""What every store of replicas promises."""

import time

import pytest

from services.coordinator.domain.replica import Replica
from services.coordinator.ports import Replicas
from services.coordinator.stores.replicas import RedisReplicas
from shared.registry.connection import RedisClients
from tests.contract.registry_steps import until
from tests.fakes.replicas import MemoryReplicas

A, B = Replica("boot-2", "http://a:1", "aa"), Replica("boot-1", "http://b:1", "aa")


@pytest.fixture
def replicas(clients: RedisClients | None) -> Replicas:
    return MemoryReplicas(time.time) if clients is None else RedisReplicas(clients.commands)


async def test_whoever_announces_itself_hears_of_all(replicas: Replicas) -> None:
    assert await replicas.announce(B, lease_s=60.0) == (B,)
    assert await replicas.announce(A, lease_s=60.0) == (A, B)
    assert await replicas.announce(A, lease_s=60.0) == (A, B)


async def test_who_falls_silent_is_gone_after_its_lease(replicas: Replicas) -> None:
    await replicas.announce(B, lease_s=0.05)

    async def is_alone() -> bool:
        return await replicas.announce(A, lease_s=60.0) == (A,)

    await until(is_alone)


async def test_who_withdraws_is_gone_at_once(replicas: Replicas) -> None:
    await replicas.announce(A, lease_s=60.0)
    await replicas.withdraw(A)
    await replicas.withdraw(A)
    assert await replicas.announce(B, lease_s=60.0) == (B,)
