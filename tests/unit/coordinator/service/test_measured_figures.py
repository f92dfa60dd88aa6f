"""What plans go by of what nodes measured, and what replicas share of it."""

import asyncio
import math
from dataclasses import replace

import pytest

from services.coordinator.domain.profile import KEPT_DAYS
from services.coordinator.service.measuring import LOOK_EVERY_S, SETTLE_S
from shared.contracts.messages import (
    DraftTokens,
    Heartbeat,
    ReceiptPosted,
)
from shared.domain.errors import ProtocolViolation, RegistryUnavailable
from shared.domain.measured import STEADY, CallTime, Drift, Measured, Pace, PeerLink
from shared.domain.task import Verification
from tests.fakes.identities import N1, N2, N3
from tests.fakes.tasks import make_task
from tests.unit.coordinator.cluster import Cluster
from tests.unit.coordinator.harness import Coordinator
from tests.unit.coordinator.measuring import (
    FAST,
    SLOW,
    STAGE,
    TIMES,
    asked,
    capability_of,
    looked,
    measured,
    ready,
    started,
    told,
)


async def test_plans_are_told_nothing_of_single_stages() -> None:
    """With them a few thousand nodes fill the largest body."""
    coordinator = await ready(N1)
    coordinator.members.loading(N1, STAGE)
    coordinator.loaded[N1] = (STAGE,)
    await measured(coordinator, **{N1: FAST})
    known = capability_of(coordinator, N1).measured
    assert known is not None
    assert known.stages == (TIMES,)
    (view,) = coordinator.members.nodes().nodes
    assert view.capability.measured == replace(known, stages=())


async def test_nodes_that_were_not_measured_yet_are_taken_for_ones_like_the_others() -> None:
    coordinator = await ready(N1, N2, speed=1e15)
    await measured(coordinator, **{N1: SLOW})
    assert capability_of(coordinator, N2).speed == pytest.approx(SLOW.speed)
    assert capability_of(coordinator, N2).measured is None


async def test_equal_nodes_get_one_level_and_others_their_own() -> None:
    coordinator = await ready(N1, N2, N3)
    alike = Pace(FAST.decode_s_per_byte * 1.2, FAST.prefill_s_per_byte * 0.9)
    await measured(coordinator, **{N1: FAST, N2: alike, N3: SLOW})
    found = [capability_of(coordinator, node).measured for node in (N1, N2, N3)]
    assert [each.pace if each else None for each in found] == [FAST, FAST, SLOW]


@pytest.mark.parametrize(
    "found",
    [
        {"pace": Pace(math.inf, 1e-10)},
        {"pace": Pace(1e-10, -1.0)},
        {"stages": (TIMES, TIMES)},
        {"stages": (replace(TIMES, decode=(CallTime(10**400, 0.01, 0.01, 1),)),)},
        {"links": (PeerLink(N1, 0.1, 1e6),)},
    ],
)
async def test_figures_that_no_node_has_are_refused(found: dict[str, object]) -> None:
    coordinator = await started(N1)
    await looked(coordinator)
    with pytest.raises(ProtocolViolation):
        await told(coordinator, N1, **found)
    await looked(coordinator, LOOK_EVERY_S)
    assert await coordinator.profiles.changes(0) == ()


async def test_a_worker_does_not_say_by_itself_how_fast_it_is() -> None:
    coordinator = await started(N1, measured=Measured(FAST))
    assert capability_of(coordinator, N1).measured is None


async def test_drift_of_a_node_with_a_host_of_its_own_is_kept() -> None:
    coordinator = await ready(N1)
    await measured(coordinator, **{N1: FAST})
    await coordinator.messages.handle(coordinator.tokens[N1], Heartbeat(boot_id="boot-1", drift=Drift(1.5, 1.1)))
    await coordinator.measuring.look()
    found = capability_of(coordinator, N1).measured
    assert found is not None
    assert found.by_now == Drift(1.5, 1.1)
    await coordinator.messages.handle(coordinator.tokens[N1], Heartbeat(boot_id="boot-1"))  # it had no calls for long
    await coordinator.measuring.look()
    assert capability_of(coordinator, N1).measured == replace(found, by_now=STEADY)


class TimedCluster(Cluster):
    """A receipt of an auditor takes its time."""

    takes_s: dict[str, float]

    async def _post(self, node_id: str, message: DraftTokens | ReceiptPosted) -> None:
        if isinstance(message, ReceiptPosted) and message.lane > 0:
            await self.coordinator.advance(self.takes_s[node_id])
        await super()._post(node_id, message)


async def test_a_node_that_claims_more_than_it_does_is_found_out_by_what_it_signs() -> None:
    coordinator = await ready(N1, N2, N3)
    boast = Pace(FAST.decode_s_per_byte / 20, FAST.prefill_s_per_byte / 20)
    await measured(coordinator, **{N1: FAST, N2: FAST, N3: boast})
    assert capability_of(coordinator, N3).speed > 10 * capability_of(coordinator, N1).speed
    cluster = TimedCluster(coordinator)
    cluster.takes_s = {N1: 0.1, N2: 0.1, N3: 0.1}
    task = make_task(verification=Verification.AUDIT, max_byzantine=1, max_tokens=120)
    await coordinator.open(task)
    await cluster.run()
    await coordinator.measuring.look()
    assert capability_of(coordinator, N3).speed == pytest.approx(capability_of(coordinator, N1).speed)
    await coordinator.join(N3, boot_id="boot-2")  # what was seen of another run says nothing about this one
    await looked(coordinator, LOOK_EVERY_S)
    await measured(coordinator, **{N1: FAST, N2: FAST, N3: FAST})
    assert capability_of(coordinator, N3).speed == pytest.approx(capability_of(coordinator, N1).speed)


async def test_a_node_that_was_started_anew_is_tried_anew_and_keeps_its_level_until_then() -> None:
    coordinator = await ready(N1)
    await measured(coordinator, **{N1: FAST})
    coordinator.loaded[N1] = (STAGE,)
    coordinator.members.loading(N1, STAGE)
    await measured(coordinator, **{N1: FAST})
    assert capability_of(coordinator, N1).measured == Measured(FAST, stages=(TIMES,))
    await coordinator.join(N1, boot_id="boot-2", cores=8)
    assert capability_of(coordinator, N1).speed == FAST.speed  # at once: plans go on by it
    await looked(coordinator, SETTLE_S)
    assert capability_of(coordinator, N1).measured == Measured(FAST)
    quick = Pace(FAST.decode_s_per_byte / 4, FAST.prefill_s_per_byte / 4)
    coordinator.members.loading(N1, STAGE)
    await measured(coordinator, **{N1: quick})
    assert capability_of(coordinator, N1).measured == Measured(quick, stages=(TIMES,))


async def test_figures_hold_before_anybody_is_asked_and_nobody_waits_for_another_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await ready(N1, N2)
    await measured(first, **{N1: FAST, N2: FAST})
    coordinator = Coordinator(profiles=first.profiles)
    for node_id in (N1, N2):
        await coordinator.join(node_id, boot_id="boot-2")
    await looked(coordinator, SETTLE_S)
    assert capability_of(coordinator, N1).measured is not None
    hung = asyncio.Event()
    monkeypatch.setattr(coordinator.workers[N1], "measure", lambda _: hung.wait())
    await coordinator.advance(LOOK_EVERY_S)
    look = asyncio.create_task(coordinator.measuring.look())
    await coordinator.settle()
    assert len(asked(coordinator, N2)) == 1
    hung.set()
    await look


async def test_nothing_is_kept_of_nodes_of_which_nothing_is_known_or_that_left_long_ago() -> None:
    coordinator = await ready(N1, N2)
    await measured(coordinator, **{N1: FAST})
    assert [profile.node_id for _, profile in await coordinator.profiles.changes(0)] == [N1]
    await coordinator.lose(N1)
    for days, is_kept in ((KEPT_DAYS, True), (2, False)):
        coordinator.clock._wall_offset_s += days * 86_400
        await looked(coordinator, 2 * LOOK_EVERY_S)
        assert bool(await coordinator.profiles.changes(0)) is is_kept


async def test_a_demand_at_another_replica_ends_what_the_first_has_not_saved() -> None:
    first = await ready(N1)
    other = Coordinator(profiles=first.profiles, is_first=False)
    await other.join(N1)
    await measured(first, **{N1: FAST})
    await looked(other, LOOK_EVERY_S)
    await first.messages.handle(first.tokens[N1], Heartbeat(boot_id="boot-1", drift=Drift(3.0, 3.0)))
    await other.measuring.demand(N1)
    before = len(asked(first, N1))
    await looked(first, LOOK_EVERY_S)
    assert len(asked(first, N1)) == before + 1


async def test_a_demand_that_another_replica_crosses_is_not_lost() -> None:
    first = await ready(N1)
    other = Coordinator(profiles=first.profiles, is_first=False)
    await other.join(N1)
    await measured(first, **{N1: FAST})  # the other one has not heard of it
    await other.measuring.demand(N1)
    before = len(asked(first, N1))
    await looked(first, LOOK_EVERY_S)
    assert len(asked(first, N1)) == before + 1


async def test_other_replicas_ask_nobody_and_hear_what_was_found() -> None:
    first = await ready(N1, N2)
    other = Coordinator(profiles=first.profiles, is_first=False)
    for node_id in (N1, N2):
        await other.join(node_id)
    await looked(other, 2 * SETTLE_S)
    assert asked(other, N1) == []
    await measured(first, **{N1: FAST, N2: SLOW})
    await told(other, N1, pace=SLOW)  # workers tell all of them
    await looked(other, LOOK_EVERY_S)
    for node_id in (N1, N2):
        assert capability_of(other, node_id).measured == capability_of(first, node_id).measured


async def test_a_coordinator_that_is_started_again_knows_what_was_found() -> None:
    before = await ready(N1)
    await measured(before, **{N1: FAST})
    again = Coordinator(profiles=before.profiles)
    await again.join(N1)
    await looked(again, LOOK_EVERY_S)
    assert capability_of(again, N1).measured == capability_of(before, N1).measured
    await looked(again, 2 * SETTLE_S)
    assert asked(again, N1) == []


async def test_while_the_registry_is_away_what_was_found_holds() -> None:
    coordinator = await ready(N1)
    coordinator.profiles.is_away = True
    for _ in range(3):
        with pytest.raises(RegistryUnavailable):
            await coordinator.measuring.look()
    assert asked(coordinator, N1) == []
    coordinator.profiles.is_away = False
    await measured(coordinator, **{N1: FAST})
    assert capability_of(coordinator, N1).speed == pytest.approx(FAST.speed)
