"""What plans would be made for the nodes that are ready now, and how good a plan is."""

from abc import ABC, abstractmethod

from services.api.domain.cluster_view import Json
from services.api.domain.plan_view import preview_resource, quality_resource
from services.api.domain.wanted import GivenPlan, TaskTerms, WantedPlan, verification_of
from services.api.ports import Catalogue, Nodes, Planner
from services.api.service.preparation import TaskDefaults
from shared.contracts.partitioner import PlanRequest, PreviewRequest, QualityRequest
from shared.domain.errors import InvalidInput, VerificationUnavailable
from shared.domain.ids import PlanId
from shared.domain.plan import NodeCapability, PartitionPlan, Seating
from shared.domain.session import NodeState
from shared.domain.task import Verification

BY_HAND = "by_hand"


class PlansInterface(ABC):
    """Both raise `ModelNotFound`, `PeerUnavailable`, and as `Planner`."""

    @abstractmethod
    async def preview(self, wanted: WantedPlan) -> Json:
        """Raises `InvalidInput` and its kin for a mode that is not offered here."""

    @abstractmethod
    async def rate(self, given: GivenPlan) -> Json:
        """Of a plan on nodes that are ready."""


class PlansService(PlansInterface):
    def __init__(self, *, catalogue: Catalogue, nodes: Nodes, planner: Planner, defaults: TaskDefaults) -> None:
        self._catalogue = catalogue
        self._nodes = nodes
        self._planner = planner
        self._defaults = defaults

    async def preview(self, wanted: WantedPlan) -> Json:
        model = await self._catalogue.model(wanted.model_id)
        mode, f = self._verification(wanted.terms)
        found = await self._planner.preview(
            PreviewRequest(
                wanted=PlanRequest(
                    model_id=model.model_id,
                    nodes=await self._ready(with_stage_times=True),
                    strategy=wanted.strategy,
                    objective=wanted.objective,
                    num_stages=wanted.num_stages,
                    seating=Seating(mode, f, hold=bool(wanted.terms.hold)),
                ),
                sequences=wanted.load.sequences,
                prompt_tokens=wanted.load.prompt_tokens,
                context_tokens=wanted.load.context_tokens,
            )
        )
        return preview_resource(found)

    async def rate(self, given: GivenPlan) -> Json:
        model = await self._catalogue.model(given.model_id)
        plan = PartitionPlan(PlanId(BY_HAND), model.model_id, model.root, BY_HAND, given.lanes)
        quality = await self._planner.rate(QualityRequest(plan=plan, nodes=await self._ready()))
        return {"object": "plan.quality", "model": model.model_id, "quality": quality_resource(quality)}

    def _verification(self, terms: TaskTerms) -> tuple[Verification, int]:
        try:
            return verification_of(terms, self._defaults.verification, self._defaults.max_byzantine)
        except (InvalidInput, VerificationUnavailable) as error:
            error.param = "verification"  # where it stands in this body
            raise

    async def _ready(self, *, with_stage_times: bool = False) -> tuple[NodeCapability, ...]:
        nodes = await self._nodes.nodes(with_stage_times=with_stage_times)
        return tuple(node.capability for node in nodes if node.state is NodeState.READY)
