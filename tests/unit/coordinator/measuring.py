"""Coordinators whose nodes are measured, for tests: what they are asked, and answers."""

import math
from dataclasses import replace
from typing import Any

from services.coordinator.service.measuring import LOOK_EVERY_S, SETTLE_S
from shared.contracts.messages import (
    MeasureNode,
    NodeMeasured,
    StageRef,
)
from shared.domain.ids import ModelId
from shared.domain.measured import CallTime, Pace, PeerLink, StageTimes
from shared.domain.plan import LayerRange, NodeCapability
from tests.unit.coordinator.harness import Coordinator

STAGE = StageRef(model_id=ModelId("m"), model_root="root", layers=LayerRange(0, 3), num_layers=6)
CALLS = (CallTime(1, 0.01, 0.01, 1),)
TIMES = StageTimes("root", 0, 3, CALLS, CALLS, CALLS)
FAST, SLOW = Pace(1e-10, 3e-11), Pace(4e-10, 12e-11)
ONE_HOST = {"host": "box"}


async def started(*nodes: str, **changes: Any) -> Coordinator:  # what a capability may be
    coordinator = await Coordinator().start(nodes=())
    for node_id in nodes:
        await coordinator.join(node_id, **changes)
    return coordinator


async def looked(coordinator: Coordinator, seconds: float = SETTLE_S + LOOK_EVERY_S) -> None:
    """Time passes, the measuring loop runs."""
    for _ in range(math.ceil(seconds / LOOK_EVERY_S)):
        await coordinator.advance(LOOK_EVERY_S)
        await coordinator.measuring.look()


def asked(coordinator: Coordinator, node_id: str) -> list[MeasureNode]:
    return [told for told in coordinator.workers[node_id].told if isinstance(told, MeasureNode)]


async def told(coordinator: Coordinator, node_id: str, **found: Any) -> None:
    message = NodeMeasured(**found)
    await coordinator.messages.handle(coordinator.tokens[node_id], message)


async def measured(coordinator: Coordinator, **paces: Pace) -> None:
    """Every question is answered, by nodes of these paces, until there are no more."""
    answered = {node_id: len(asked(coordinator, node_id)) for node_id in paces}
    is_over = False
    while not is_over:
        await looked(coordinator, LOOK_EVERY_S)
        is_over = True
        for node_id, pace in paces.items():
            for question in asked(coordinator, node_id)[answered[node_id] :]:
                answered[node_id] += 1
                is_over = False
                await told(coordinator, node_id, **answer(question, pace))


def answer(question: MeasureNode, pace: Pace) -> dict[str, Any]:
    stages = [replace(TIMES, start=ref.layers.start, end=ref.layers.end) for ref in question.stages]
    links = [PeerLink(ends.next.node_id, 0.001, 1e8) for ends in question.peers]
    return {"pace": pace if question.has_pace else None, "stages": tuple(stages), "links": tuple(links)}


async def ready(*nodes: str, **changes: Any) -> Coordinator:
    """The nodes have settled; nobody has been asked yet."""
    coordinator = await started(*nodes, **changes)
    await looked(coordinator, SETTLE_S)
    return coordinator


def capability_of(coordinator: Coordinator, node_id: str) -> NodeCapability:
    (view,) = [view for view in coordinator.members.nodes(with_stage_times=True).nodes if view.node_id == node_id]
    return view.capability
