"""What a model is made of, as the partitioner sees it."""

from dataclasses import dataclass

from shared.domain.ids import ModelId


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One transformer block. FLOPs follow Kaplan et al. 2020: 2 per weight and token, attention beside it."""

    index: int
    name: str
    weight_bytes: int
    flops_per_token: int
    activation_bytes: int
    """Bytes of one row of hidden state that leaves the layer (float32)."""
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the catalogue: read from the headers of its file alone."""

    model_id: ModelId
    root: str
    """Hex digest over all tensors and kept keys: what receipts call `model_root`."""
    architecture: str
    n_embd: int
    n_vocab: int
    context_tokens: int
    """What the model was trained for; a cluster may serve less."""
    layers: tuple[LayerInfo, ...]
    embedding_bytes: int
    """Weights that only the first stage holds."""
    head_bytes: int
    """Weights that only the last stage holds (a tied head is held twice, once at each end)."""
    file_bytes: int
    has_chat_template: bool
    splittable: bool
    """False: the family may run whole, but not as several stages (engine.md 4.1 names the rule in `reason`)."""
    reason: str = ""
    created_s: int = 0
    """Unix time at which the file joined the catalogue."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)


def stage_weight_bytes(model: ModelInfo, start: int, end: int) -> int:
    """Bytes of weights of layers [start, end) with the ends' extras: what a seat must hold."""
    weights = sum(layer.weight_bytes for layer in model.layers[start:end])
    if start == 0:
        weights += model.embedding_bytes
    if end == model.num_layers:
        weights += model.head_bytes
    return weights


def kv_bytes_per_token(model: ModelInfo, start: int, end: int) -> int:
    """Bytes of KV cache of layers [start, end), per row of a slot."""
    return sum(layer.kv_bytes_per_token for layer in model.layers[start:end])


def seat_bytes(model: ModelInfo, start: int, end: int, *, rows: int) -> int:
    """Bytes of weights and of a KV cache of `rows` rows: what a node needs for a seat of layers [start, end)."""
    return stage_weight_bytes(model, start, end) + rows * kv_bytes_per_token(model, start, end)
