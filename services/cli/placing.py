"""Waits until a model stands on the workers of a cluster that has just started."""

from contextlib import aclosing

from services.cli.clients.control_plane import Coordinator, Partitioner
from services.cli.domain.cluster import Kind
from services.cli.domain.environment import Layout
from services.cli.domain.placement import is_placed
from shared.domain.errors import ButterflyError, ModelNotFound
from shared.runtime.clock import Clock

PLACED_WITHIN_S = 180.0
"""Each worker fetches, checks and loads its stage, and measures it."""
_ASK_EVERY_S = 0.25


async def why_not_placed(model: str, layout: Layout, clock: Clock) -> str:
    """Empty as soon as the model stands; else, after a while, what is missing."""
    coordinator = Coordinator(layout.url(Kind.COORDINATOR), service_token=layout.service_token, now=clock.now_s)
    partitioner = Partitioner(layout.url(Kind.PARTITIONER), service_token=layout.service_token, now=clock.now_s)
    until_s, reason = clock.now_s() + PLACED_WITHIN_S, ""
    async with aclosing(coordinator), aclosing(partitioner):
        while clock.now_s() < until_s:
            try:
                num_layers = await partitioner.num_layers(model)
                if is_placed(await coordinator.nodes(), model, num_layers):
                    return ""
                reason = f"no plan for it stands after {PLACED_WITHIN_S:g} s (the scheduler's log says why)"
            except ModelNotFound as error:
                return error.message
            except ButterflyError as error:
                reason = error.message
            await clock.sleep(_ASK_EVERY_S)
    return reason
