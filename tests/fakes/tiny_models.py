"""Tiny random models: real GGUF files of about 1 MB with seeded weights, for tests that need a model, not a mind."""

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

WIDTH = 128
N_HEADS = 4
N_KV_HEADS = 2
HEAD_SIZE = 32
FEED_FORWARD = 256
WIDE_FEED_FORWARD = 2048  # with K-quants: of blocks of 256 values there must be several, to be summed up in some order
N_VOCAB = 512
CONTEXT_TOKENS = 1024
SLIDING_WINDOW = 16

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)

_SPECIAL = ["<unk>", "<s>", "</s>"]
_CONTROL, _UNKNOWN, _BYTE, _NORMAL = (
    gguf.TokenType.CONTROL,
    gguf.TokenType.UNKNOWN,
    gguf.TokenType.BYTE,
    gguf.TokenType.NORMAL,
)
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def write_tiny_model(
    path: Path,
    architecture: str = "llama",
    tied: bool = True,
    seed: int = 0,
    num_layers: int = 6,
    weight_type: gguf.GGMLQuantizationType = Q8_0,
    has_k_quants: bool = False,
) -> Path:
    """A model of one of the families llama, qwen2, qwen3, gemma3.

    With weights in Q8_0 it runs `exact`, in F16 `decode-exact` in calls of one row; with `has_k_quants`, where one
    matrix of each layer is in Q6_K, in calls of several.

    `tied`: the head is the embedding; else it has weights of its own. Returns `path`.
    """
    writer = gguf.GGUFWriter(path, architecture)
    feed_forward = WIDE_FEED_FORWARD if has_k_quants else FEED_FORWARD
    _add_shape(writer, architecture, num_layers, feed_forward)
    _add_vocabulary(writer)
    weights = _Weights(writer, np.random.default_rng(seed), weight_type, has_k_quants=has_k_quants)
    weights.matrix("token_embd.weight", N_VOCAB, WIDTH)
    weights.norm("output_norm.weight", WIDTH)
    if not tied:
        weights.matrix("output.weight", N_VOCAB, WIDTH)
    for layer in range(num_layers):
        _add_layer(weights, f"blk.{layer}", architecture, feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Weights:
    def __init__(
        self,
        writer: gguf.GGUFWriter,
        random: np.random.Generator,
        weight_type: gguf.GGMLQuantizationType,
        *,
        has_k_quants: bool,
    ) -> None:
        self._writer, self._random, self._type = writer, random, weight_type
        self._has_k_quants = has_k_quants

    def matrix(self, name: str, n_out: int, n_in: int) -> None:
        values = self._random.standard_normal((n_out, n_in)).astype(np.float32) * (2.0 / np.sqrt(n_in))
        self._writer.add_tensor(name, quantize(values.astype(np.float32), self._type), raw_dtype=self._type)

    def wide_matrix(self, name: str, n_out: int, n_in: int) -> None:
        """One whose rows fill blocks of 256 values."""
        if not self._has_k_quants:
            self.matrix(name, n_out, n_in)
            return
        shape = (n_out, n_in // 256)
        bits = self._random.integers(0, 256, (*shape, 208), np.uint8)  # values of 6 bits around 0, sixteen scales
        scale = np.full((*shape, 1), 0.00009, np.float16).view(np.uint8)
        blocks = np.concatenate([bits, scale], axis=2).reshape(n_out, -1)
        self._writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q6_K)

    def norm(self, name: str, size: int) -> None:
        self._writer.add_tensor(name, (1.0 + 0.1 * self._random.standard_normal(size)).astype(np.float32))

    def bias(self, name: str, size: int) -> None:
        self._writer.add_tensor(name, (0.1 * self._random.standard_normal(size)).astype(np.float32))


def _add_layer(weights: _Weights, prefix: str, architecture: str, feed_forward: int) -> None:
    q_size, kv_size = N_HEADS * HEAD_SIZE, N_KV_HEADS * HEAD_SIZE
    weights.norm(f"{prefix}.attn_norm.weight", WIDTH)
    weights.norm(f"{prefix}.ffn_norm.weight", WIDTH)
    for name, n_out, n_in in (
        ("attn_q", q_size, WIDTH),
        ("attn_k", kv_size, WIDTH),
        ("attn_v", kv_size, WIDTH),
        ("attn_output", WIDTH, q_size),
        ("ffn_gate", feed_forward, WIDTH),
        ("ffn_up", feed_forward, WIDTH),
    ):
        weights.matrix(f"{prefix}.{name}.weight", n_out, n_in)
    weights.wide_matrix(f"{prefix}.ffn_down.weight", WIDTH, feed_forward)
    if architecture == "qwen2":
        for name, size in (("attn_q", q_size), ("attn_k", kv_size), ("attn_v", kv_size)):
            weights.bias(f"{prefix}.{name}.bias", size)
    if architecture in {"qwen3", "gemma3"}:
        weights.norm(f"{prefix}.attn_q_norm.weight", HEAD_SIZE)
        weights.norm(f"{prefix}.attn_k_norm.weight", HEAD_SIZE)
    if architecture == "gemma3":
        weights.norm(f"{prefix}.post_attention_norm.weight", WIDTH)
        weights.norm(f"{prefix}.post_ffw_norm.weight", WIDTH)


def _add_shape(writer: gguf.GGUFWriter, architecture: str, num_layers: int, feed_forward: int) -> None:
    writer.add_name(f"tiny {architecture}")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(num_layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    if architecture == "llama":
        writer.add_rope_dimension_count(HEAD_SIZE)
    if architecture == "gemma3":
        writer.add_sliding_window(SLIDING_WINDOW)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A sentencepiece vocabulary with a token per byte, so that every text has ids and comes back."""
    pieces = [(text, _UNKNOWN if text == "<unk>" else _CONTROL) for text in _SPECIAL]
    pieces += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    words = ["\u2581", *(chr(code) for code in range(33, 127)), "\u2581the", "\u2581a", "he", "in", "th", "er", "on"]
    pieces += [(word, _NORMAL) for word in words]
    pieces += [(f"\u2581w{index}", _NORMAL) for index in range(N_VOCAB - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([-float(index) for index in range(N_VOCAB)])
    writer.add_token_types([int(kind) for _, kind in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
