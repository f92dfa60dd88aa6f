"""Random clusters and models for `bench.placement`, and the best plan by trying every one."""

import math
import random
from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np

from services.partitioner.domain.hops import TOKEN_ID_BYTES, Hops
from services.partitioner.domain.placement import SeatRoom
from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import LayerInfo, ModelInfo
from shared.domain.measured import MAX_LINKS, Measured, Pace, PeerLink
from shared.domain.plan import NodeCapability, Objective

_MIB = 1 << 20
TIGHT, ROOMY = (1.05, 3.0), (2.0, 8.0)
"""Memory of all nodes by the model's, from and to."""


def random_model(rng: random.Random, num_layers: int) -> ModelInfo:
    """Layers of 20 to 200 MB; in half of the models they differ, in the others they are alike."""
    usual = rng.randint(20, 200) * _MIB
    is_even = rng.random() < 0.5
    sizes = [usual if is_even else int(usual * rng.uniform(0.5, 2)) for _ in range(num_layers)]
    n_embd = rng.choice([576, 2_048, 4_096, 8_192])
    return ModelInfo(
        model_id=ModelId("random"),
        root="00",
        architecture="llama",
        n_embd=n_embd,
        n_vocab=rng.choice([0, 32_000, 128_000]),
        context_tokens=4_096,
        layers=tuple(
            LayerInfo(index, f"blk.{index}", size, 4 * size, 4 * n_embd, kv_bytes_per_token=rng.choice([256, 1_024]))
            for index, size in enumerate(sizes)
        ),
        embedding_bytes=rng.randint(0, 2) * usual,
        head_bytes=rng.randint(0, 2) * usual,
        file_bytes=sum(sizes),
        has_chat_template=False,
        splittable=True,
    )


def random_cluster(
    rng: random.Random, model: ModelInfo, num_nodes: int, *, memory: tuple[float, float] = TIGHT
) -> tuple[NodeCapability, ...]:
    """Nodes in up to three sites: near each other within one, 5 to 80 ms apart between two.

    Speeds differ by a factor of ten, with some nodes ten times faster yet. `memory`: of all together, by the model's.
    """
    sites = [rng.randrange(rng.randint(1, 3)) for _ in range(num_nodes)]
    shares = [rng.uniform(0.2, 1) for _ in range(num_nodes)]
    needed = model.embedding_bytes + model.head_bytes + sum(layer.weight_bytes for layer in model.layers)
    offered = needed * rng.uniform(*memory)
    between_s = rng.uniform(0.005, 0.08)
    ids = [NodeId(f"n{index:05}") for index in range(num_nodes)]
    nodes = []
    for index in range(num_nodes):
        decode = 1 / (rng.uniform(2, 20) * 1e9 if rng.random() < 0.8 else rng.uniform(20, 200) * 1e9)
        peers = [other for other in range(num_nodes) if other != index]
        told = rng.sample(peers, min(MAX_LINKS, len(peers)))
        links = [
            PeerLink(
                ids[peer],
                rtt_s=rng.uniform(0.0003, 0.003) if sites[peer] == sites[index] else between_s * rng.uniform(0.8, 1.2),
                bytes_per_s=rng.uniform(5e7, 1e9) if sites[peer] == sites[index] else rng.uniform(1e6, 5e7),
            )
            for peer in sorted(told)
        ]
        nodes.append(
            NodeCapability(
                ids[index],
                memory_bytes=int(offered * shares[index] / sum(shares)),
                speed=1.0,
                slots=1,
                context_tokens=16,
                measured=Measured(Pace(decode, decode * rng.uniform(0.05, 0.5)), tuple(links)),
            )
        )
    return tuple(nodes)


def best_of_all(
    rooms: Sequence[SeatRoom], num_layers: int, hops: Hops, objective: Objective, counts: Sequence[int]
) -> float | None:
    """The value of the best of all choices, orders and cuts with so many stages; None when none fits."""
    places = range(len(rooms))
    steps = np.array([_steps(room, num_layers) for room in rooms])
    ways = [[hops.between(one, other) for other in places] for one in places]
    latency = np.array([[way.latency_s if objective is Objective.LATENCY else 0.0 for way in row] for row in ways])
    s_per_byte = np.array([[way.s_per_byte for way in row] for row in ways])
    row_bytes = np.array((0, *rooms[0].row_bytes), dtype=np.float64)
    combine = np.add if objective is Objective.LATENCY else np.maximum
    best = np.inf
    for count in counts:
        if count > min(len(rooms), num_layers):
            continue
        orders = np.array(list(permutations(range(len(rooms)), count)))
        cuts = np.array(
            [(0, *inner, num_layers) for inner in combinations(range(1, num_layers), count - 1)], dtype=np.int64
        )
        total = np.zeros((len(orders), len(cuts)))
        for stage in range(count):
            seated, start, end = orders[:, stage, None], cuts[None, :, stage], cuts[None, :, stage + 1]
            total = combine(total, steps[seated, start, end])
            if count > 1:
                following = orders[:, (stage + 1) % count, None]
                size = row_bytes[end] if stage < count - 1 else np.float64(TOKEN_ID_BYTES)
                total = combine(total, latency[seated, following] + s_per_byte[seated, following] * size)
        best = min(best, float(total.min()))
    return None if best == np.inf else best


def _steps(room: SeatRoom, num_layers: int) -> list[list[float]]:
    """Seconds of a stage by where it starts and ends; infinite where the room does not hold it."""
    layers = range(num_layers + 1)
    return [
        [room.step_s(start, end) if start < end and room.holds(start, end) else math.inf for end in layers]
        for start in layers
    ]
