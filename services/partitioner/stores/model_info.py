"""Describes a model file for the planner: layers and what each costs."""

from collections.abc import Iterable

from services.partitioner.domain.layer_costs import LayerShape, layer_info
from shared.domain.errors import BadModelFile
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.llama.cutting import ModelFile, admission_of, layer_of
from shared.llama.gguf import TensorInfo

_MAX_HEADS = 1 << 16
_MAX_HEAD_LENGTH = 1 << 16


def describe(model_id: ModelId, model: ModelFile, root: str) -> ModelInfo:
    """Raises `BadModelFile` for attention figures that no model has."""
    by_layer: dict[int | None, list[TensorInfo]] = {}
    for name, tensor in model.gguf.tensors.items():
        by_layer.setdefault(layer_of(name), []).append(tensor)
    outside = by_layer.get(None, [])
    head_only = [tensor for tensor in outside if tensor.name.startswith("output")]
    first_only = [tensor for tensor in outside if not tensor.name.startswith("output")]
    is_tied = "output.weight" not in model.gguf.tensors
    admission = admission_of(model)
    return ModelInfo(
        model_id=model_id,
        root=root,
        architecture=model.architecture,
        n_embd=model.n_embd,
        n_vocab=model.n_vocab,
        context_tokens=model.context_tokens,
        layers=tuple(layer_info(shape) for shape in _shapes(model, by_layer)),
        embedding_bytes=_size(first_only),
        head_bytes=_size(head_only) + (model.head.size_bytes if is_tied else 0),
        file_bytes=model.gguf.size_bytes,
        has_chat_template=model.has_chat_template,
        splittable=admission.splittable,
        reason=admission.reason,
        created_s=model.gguf.mtime_ns // 1_000_000_000,
    )


def _shapes(model: ModelFile, by_layer: dict[int | None, list[TensorInfo]]) -> Iterable[LayerShape]:
    heads = _per_layer(model, "attention.head_count", _MAX_HEADS) or (0,) * model.num_layers
    kv_heads = _per_layer(model, "attention.head_count_kv", _MAX_HEADS) or heads
    key_lengths = _per_layer(model, "attention.key_length", _MAX_HEAD_LENGTH)
    value_lengths = _per_layer(model, "attention.value_length", _MAX_HEAD_LENGTH)
    for index in range(model.num_layers):
        tensors = by_layer.get(index, [])
        default = model.n_embd // heads[index] if heads[index] else 0
        yield LayerShape(
            index=index,
            n_embd=model.n_embd,
            weight_bytes=_size(tensors),
            matrix_elements=sum(tensor.num_elements for tensor in tensors if len(tensor.shape) > 1),
            num_heads=heads[index],
            num_kv_heads=kv_heads[index],
            key_length=key_lengths[index] if key_lengths else default,
            value_length=value_lengths[index] if value_lengths else default,
        )


def _per_layer(model: ModelFile, suffix: str, limit: int) -> tuple[int, ...] | None:
    """The figure of each layer, from one number or an array; None when the model does not say."""
    name = f"{model.architecture}.{suffix}"
    found = model.gguf.value(name)
    if found is None:
        return None
    figures = found if isinstance(found, list) else [found] * model.num_layers
    if len(figures) != model.num_layers:
        raise BadModelFile(f"{model.path.name}: {name} has {len(figures)} items for {model.num_layers} layers")
    checked = [figure for figure in figures if isinstance(figure, int) and 0 <= figure <= limit]
    if len(checked) != len(figures):
        raise BadModelFile(f"{model.path.name}: {name} should be 0 to {limit}")
    return tuple(checked)


def _size(tensors: Iterable[TensorInfo]) -> int:
    return sum(tensor.size_bytes for tensor in tensors)
