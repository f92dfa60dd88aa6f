"""Assignments signed by the coordinator of the tests."""

from collections.abc import Sequence

from shared.contracts.messages import SignedText, StageRef
from shared.domain.chain import RowChain, chain_start, class_hash, id_bytes, sampler_hash
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.numerics import ANY_ROWS, Profile
from shared.domain.receipt import Assignment, sign_assignment
from shared.domain.signing import SigningKey
from shared.domain.task import SamplerParams

CHECKPOINT_INTERVAL = 10
WINDOW_CHECKPOINTS = 4


def order_of(
    *,
    node_id: NodeId,
    task_id: TaskId,
    epoch: Epoch,
    lane: int,
    stage: int,
    ref: StageRef,
    sampler: SamplerParams,
    numerics_class: str,
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int] = (),
    first_window: int | None = None,
    sink_start: str = "ab" * 32,
    row_class: int = ANY_ROWS,
) -> Assignment:
    """`first_window`: None for the first epoch's or, with `generated_ids`, some later one. `sink_start`: used with
    `generated_ids` only, for which nobody checks it unless a test does."""
    numerics_hash = class_hash(numerics_class)
    prefix = (*prompt_ids, *generated_ids)
    chain = RowChain(chain_start(ref.model_root, 0, numerics_hash=numerics_hash), row=0)
    chain.extend(map(id_bytes, prefix))
    top = chain_start(ref.model_root, ref.num_layers, numerics_hash=numerics_hash, sampler=sampler_hash(sampler))
    return Assignment(
        v=1,
        task_id=task_id,
        choice=0,
        epoch=epoch,
        lane=lane,
        stage=stage,
        node_id=node_id,
        layer_start=ref.layers.start,
        layer_end=ref.layers.end,
        num_layers=ref.num_layers,
        model_root=ref.model_root,
        numerics_hash=numerics_hash,
        sampler_hash=sampler_hash(sampler),
        num_prompt=len(prompt_ids),
        first_window=(1 if generated_ids else 0) if first_window is None else first_window,
        first_row=len(prefix) - 1 if generated_ids else 0,
        checkpoint_interval=CHECKPOINT_INTERVAL,
        window_checkpoints=WINDOW_CHECKPOINTS,
        profile=Profile.DECODE_EXACT if row_class else Profile.EXACT,
        row_class=row_class,
        prefix_digest=chain.at(len(prefix)).hex(),
        sink_start=sink_start if generated_ids else top.hex(),
    )


def signed_order(key: SigningKey, order: Assignment) -> SignedText:
    return SignedText.of(sign_assignment(key, order))
