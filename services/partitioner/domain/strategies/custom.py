"""Strategies of other packages: what they give is looked at before anybody builds on it."""

from collections.abc import Sequence

from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import Strategy
from shared.domain.errors import InvalidPlanInput
from shared.domain.plan import LayerRange, Objective, Partition


class Checked(Strategy):
    """Another strategy, held to the contract of `Strategy.seat`."""

    def __init__(self, strategy: Strategy) -> None:
        self.name = strategy.name
        self.chooses_stages = strategy.chooses_stages
        self._strategy = strategy

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        """Raises `InvalidPlanInput` for seats that break the contract, and when the strategy itself breaks down."""
        try:
            seats = self._strategy.seat(tuple(rooms), num_layers, num_stages, objective)
        except Exception as error:
            raise self._broken(f"it raised {type(error).__name__}: {error}") from error
        if seats is None:
            return None
        fault = fault_of(seats, rooms, num_layers, num_stages)
        if fault is not None:
            raise self._broken(fault)
        return tuple(seats)

    def _broken(self, fault: str) -> InvalidPlanInput:
        return InvalidPlanInput(f"the strategy {self.name!r} gave no plan: {fault}", param="strategy")


def fault_of(seats: object, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None) -> str | None:
    """What is wrong with the seats that a strategy gave, or None."""
    if not isinstance(seats, Sequence) or not all(map(_is_partition, seats)):
        return f"{type(seats).__name__} is no sequence of Partition"
    if not seats or num_stages not in {None, len(seats)}:
        return f"{len(seats)} stages where {num_stages or 'some'} were wanted"
    known = {room.node.node_id: room for room in rooms}
    seen: set[str] = set()
    end = 0
    for stage, seat in enumerate(seats):
        if seat.stage != stage:
            return f"stage {seat.stage} stands at place {stage}"
        if seat.layers.start != end:
            kind = "a gap" if seat.layers.start > end else "an overlap"
            return f"{kind}: stage {stage} has layers {seat.layers}, those before it end at {end}"
        if len(seat.layers) < 1:
            return f"stage {stage} has no layers ({seat.layers})"
        end = seat.layers.end
        if seat.node_id not in known:
            return f"the node {seat.node_id} of stage {stage} is not among the given ones"
        if seat.node_id in seen:
            return f"the node {seat.node_id} has two stages"
        seen.add(seat.node_id)
        if end <= num_layers and not known[seat.node_id].holds(seat.layers.start, end):
            return (
                f"layers {seat.layers} take {known[seat.node_id].memory_bytes(seat.layers.start, end)} bytes, the node"
                f" {seat.node_id} has {known[seat.node_id].node.memory_bytes}"
            )
    return None if end == num_layers else f"its stages end at layer {end} of {num_layers}"


def _is_partition(seat: object) -> bool:
    return (
        isinstance(seat, Partition)
        and isinstance(seat.layers, LayerRange)
        and all(type(number) is int for number in (seat.stage, seat.layers.start, seat.layers.end))
        and isinstance(seat.node_id, str)
    )
