"""How many cores a seat's calls may use: all that nobody else on its machine needs."""

import pytest

from shared.domain.ids import NodeId
from shared.domain.pacing import pace, replay_threads
from shared.domain.plan import NodeCapability


def node(name: str, *, host: str = "", cores: int = 4) -> NodeCapability:
    return NodeCapability(
        NodeId(name), memory_bytes=1, speed=1.0, slots=1, context_tokens=1, host=host or name, cores=cores
    )


def test_a_ring_alone_on_one_machine_takes_turns_on_all_cores() -> None:
    pacing = pace([node("a", host="h"), node("b", host="h")])
    assert (pacing.decode_batches_in_flight, pacing.threads) == (1, (4, 4))


def test_lanes_beside_each_other_share_the_cores_of_their_machine() -> None:
    lane = [node("a", host="h"), node("b", host="h")]
    pacing = pace(lane, beside=[*lane, node("c", host="h"), node("d", host="other")])
    assert (pacing.decode_batches_in_flight, pacing.threads) == (1, (1, 1))


def test_on_machines_of_their_own_every_stage_has_a_batch_and_all_cores() -> None:
    pacing = pace([node("a"), node("b"), node("c", cores=2)])
    assert (pacing.decode_batches_in_flight, pacing.threads) == (3, (4, 4, 2))


@pytest.mark.parametrize(
    ("replaying", "threads"),
    [
        (["a@h"], 4),
        (["a@h", "a@h"], 4),
        (["a@h", "b@h"], 2),
        (["b@h"], 2),
        (["a@h", "b@h", "c@h", "d@h", "e@h"], 1),
        (["a@h", "b@other"], 4),
    ],
    ids=["alone", "at two seats", "beside another", "while another does", "beside many", "elsewhere"],
)
def test_who_computes_rows_again_shares_with_those_who_do_and_nobody_else(replaying: list[str], threads: int) -> None:
    nodes = [node(name, host=host) for name, host in (each.split("@") for each in replaying)]
    assert replay_threads(node("a", host="h"), nodes) == threads
