"""Which nodes of a numerics class compute the same bits, as far as their self-tests have told so far.

Nodes that differ at a stage both have loaded are of different kin, and never in the lanes of one session: each would
look like a liar to the other. Neither is accused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.domain.ids import NodeId
from shared.domain.numerics import StageFacts

StageKey = tuple[str, int, int]
"""Root of the model, and layers [start, end) of it."""


def kin_of(nodes: Mapping[NodeId, Mapping[StageKey, StageFacts]]) -> dict[NodeId, str]:
    """A name for the kin of each node, of all nodes of one class; the largest kin has the empty name.

    Each node joins those with which it has most stages in common, and never one from which it differs. Who has loaded
    nothing yet counts to the largest.
    """
    groups: list[_Group] = []
    for node_id, facts in sorted(nodes.items(), key=lambda entry: (not entry[1], entry[0])):
        fitting = [group for group in groups if group.agrees(facts)]
        if not fitting:
            groups.append(_Group())
            fitting = groups[-1:]
        best = max(fitting, key=lambda group: (len(group.facts.keys() & facts.keys()), len(group.nodes)))
        best.nodes.append(node_id)
        best.facts.update(facts)
    groups.sort(key=lambda group: -len(group.nodes))
    names = ["", *(f"kin of {group.nodes[0]}" for group in groups[1:])]
    return {node_id: name for group, name in zip(groups, names, strict=False) for node_id in group.nodes}


def first_difference(lanes: Sequence[Sequence[StageFacts]]) -> int | None:
    """The first stage whose seats do not all compute the same bits, or None."""
    for stage, seats in enumerate(zip(*lanes, strict=True)):
        if len(set(seats)) > 1:
            return stage
    return None


@dataclass(slots=True)
class _Group:
    nodes: list[NodeId] = field(default_factory=list)
    facts: dict[StageKey, StageFacts] = field(default_factory=dict)

    def agrees(self, facts: Mapping[StageKey, StageFacts]) -> bool:
        return all(self.facts.get(stage, found) == found for stage, found in facts.items())
