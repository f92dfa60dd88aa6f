"""Whether a question for a plan makes sense."""

import math

from shared.domain.errors import InvalidInput, InvalidPlanInput, NoCapacity, UnsupportedModel
from shared.domain.ids import NodeId
from shared.domain.measured import check_measured
from shared.domain.plan import NodeCapability, PlanInput, check_plan
from shared.domain.task import Verification

MAX_BYZANTINE = 511  # as in the configuration


def check_input(wanted: PlanInput) -> None:
    """Raise the error that `make_plan` names unless the question makes sense."""
    _check_seating(wanted)
    _check_stages(wanted)
    seen: set[NodeId] = set()
    for node in wanted.nodes:
        if node.node_id in seen:
            raise InvalidPlanInput(f"the node {node.node_id} is given twice", param="nodes")
        seen.add(node.node_id)
        _check_node(node)
    if not wanted.nodes and wanted.seating.verification is Verification.NONE:
        raise NoCapacity("no node is ready")


def _check_seating(wanted: PlanInput) -> None:
    seating = wanted.seating
    is_verified = seating.verification is not Verification.NONE
    if not (1 if is_verified else 0) <= seating.max_byzantine <= MAX_BYZANTINE * is_verified:
        raise InvalidPlanInput(
            f"verification {seating.verification} does not go with max_byzantine {seating.max_byzantine}",
            param="seating",
        )
    if len(seating.keep) > seating.num_lanes or (seating.with_referee and not is_verified):
        raise InvalidPlanInput(
            f"verification {seating.verification} has {seating.num_lanes} lanes; {len(seating.keep)} are to be kept",
            param="seating",
        )
    ends = [layers.end for layers in seating.layers]
    if ends and (
        [layers.start for layers in seating.layers] != [0, *ends[:-1]]
        or ends[-1] != wanted.model.num_layers
        or any(layers.end <= layers.start for layers in seating.layers)
    ):
        raise InvalidPlanInput(
            f"stages of the layers {', '.join(map(str, seating.layers))} are no cut of the {wanted.model.num_layers}"
            f" layers of {wanted.model.model_id}",
            param="seating",
        )
    if seating.keep:
        known = {node.node_id: node for node in wanted.nodes}
        check_plan(seating.keep, known, wanted.model)
        if any(lane.index != index for index, lane in enumerate(seating.keep)):
            raise InvalidPlanInput("the lanes to be kept are not lane 0 and those that follow it", param="seating")
        stages = [tuple(seat.layers for seat in lane.partitions) for lane in seating.keep]
        if any(layers != stages[0] for layers in stages) or wanted.num_stages not in {None, len(stages[0])}:
            raise InvalidPlanInput("the lanes to be kept have different stages", param="seating")


def _check_stages(wanted: PlanInput) -> None:
    model, num_stages = wanted.model, wanted.num_stages
    if not model.layers:
        raise InvalidPlanInput(f"the model {model.model_id} has no layers", param="model")
    if num_stages is None:
        return
    if not 1 <= num_stages <= model.num_layers:
        raise InvalidPlanInput(
            f"{num_stages} stages cannot be made of the {model.num_layers} layers of {model.model_id}",
            param="num_stages",
        )
    if num_stages > 1 and not model.splittable:
        raise UnsupportedModel(f"{model.model_id} cannot be cut into {num_stages} stages: {model.reason}")


def _check_node(node: NodeCapability) -> None:
    if not math.isfinite(node.speed) or node.speed <= 0:
        raise InvalidPlanInput(f"the node {node.node_id} has the speed {node.speed}: it must be above 0", param="nodes")
    if node.memory_bytes < 0 or node.slots < 1 or node.context_tokens < 1:
        raise InvalidPlanInput(
            f"the node {node.node_id} claims {node.memory_bytes} bytes, {node.slots} slots of {node.context_tokens} "
            "tokens: memory must not be below 0, the others not below 1",
            param="nodes",
        )
    if node.measured is not None:
        try:
            check_measured(node.node_id, node.measured)
        except InvalidInput as error:
            raise InvalidPlanInput(f"the node {node.node_id}: {error.message}", param="nodes") from None
