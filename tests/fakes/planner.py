"""The partitioner as the gateway reaches it, without HTTP between them."""

from collections.abc import Iterable

from services.api.ports import Planner
from services.partitioner.domain.input_checks import check_input
from services.partitioner.domain.pipelines import make_pipelines, rated
from services.partitioner.domain.prediction import predict
from services.partitioner.domain.quality import estimate_quality
from services.partitioner.domain.strategies import StrategyRegistry
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.domain.strategies.uniform import Uniform
from shared.contracts.partitioner import PreviewRequest, PreviewResponse, QualityRequest
from shared.domain.ids import NodeId
from shared.domain.plan import NodeCapability, Objective, PlanInput
from shared.domain.plan_figures import PlanQuality
from tests.fakes.catalogue import BYTE_MODEL


class LocalPlanner(Planner):
    def __init__(self) -> None:
        self._strategies = StrategyRegistry([Uniform(), LoadBalanced()])

    async def preview(self, wanted: PreviewRequest) -> PreviewResponse:
        asked = wanted.wanted
        question = PlanInput(
            BYTE_MODEL,
            asked.nodes,
            asked.strategy or LoadBalanced.name,
            asked.num_stages,
            asked.seating,
            asked.objective or Objective.THROUGHPUT,
        )
        check_input(question)
        nodes = _by_id(asked.nodes)
        found = rated(make_pipelines(question, self._strategies.get(question.strategy)), BYTE_MODEL, nodes)
        plan = found[0].plan
        return PreviewResponse(
            pipelines=found,
            prediction=predict(plan, BYTE_MODEL, nodes, wanted.load(window_tokens=40)),
            quality=estimate_quality(plan, BYTE_MODEL, nodes),
        )

    async def rate(self, given: QualityRequest) -> PlanQuality:
        return estimate_quality(given.plan, BYTE_MODEL, _by_id(given.nodes))


def _by_id(nodes: Iterable[NodeCapability]) -> dict[NodeId, NodeCapability]:
    return {node.node_id: node for node in nodes}
