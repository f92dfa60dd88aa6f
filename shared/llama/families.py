"""Which model families may be cut into stages, and what a cut must mind.

In some families the number of a layer, or how many there are, has a meaning of its own; a cut changes both. So a family
is admitted by name, each with its own test "the chain equals the whole, bit for bit", and every other one runs whole.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FamilyRule:
    sliding_period: int | None = None
    """Layer i attends to everything when i % period == period - 1, unless the file says otherwise; else to a window."""
    num_layers_limit: int | None = None
    """A model with as many layers is not cut: llama.cpp takes it for a size with its own attention scale."""


ADMITTED: dict[str, FamilyRule] = {
    "llama": FamilyRule(),
    "qwen2": FamilyRule(),
    "qwen3": FamilyRule(),
    "gemma3": FamilyRule(sliding_period=6, num_layers_limit=62),
}

_SCALED_INPUT = "it scales the hidden state that enters a stage as if it were an embedding"
_SLIDING = "its pattern of sliding windows follows the layer number, and no test covers a cut yet"
_LAYER_RULES = "its layers differ by their number"
_RECURRENT = "it keeps a recurrent state instead of, or beside, the KV cache"
_ENCODER = "it has an encoder, so there is no single chain of layers to cut"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("gemma", "gemma2"), _SCALED_INPUT),
    **dict.fromkeys(("cohere2", "olmo2", "exaone4", "gpt-oss", "cohere2moe", "smallthinker"), _SLIDING),
    **dict.fromkeys(("llama4", "gemma3n", "gemma4", "deepseek", "deepseek2"), _LAYER_RULES),
    **dict.fromkeys(("mamba", "mamba2", "rwkv6", "rwkv7", "jamba", "falcon-h1", "nemotron_h", "lfm2"), _RECURRENT),
    **dict.fromkeys(("granitehybrid", "plamo2", "qwen3next"), _RECURRENT),
    **dict.fromkeys(("t5", "t5encoder", "bert", "modern-bert", "nomic-bert"), _ENCODER),
}


def refusal(architecture: str, num_layers: int, num_experts: int) -> str | None:
    """Why a model of this family may not be cut, None when it may."""
    rule = ADMITTED.get(architecture)
    if rule is None:
        reason = REFUSED.get(architecture, "no test shows yet that its cut chain equals the whole")
        return f"the family {architecture} runs as one stage only: {reason}"
    if num_experts > 0:
        return f"a {architecture} with experts runs as one stage only: no test shows yet that its cut equals the whole"
    if rule.num_layers_limit is not None and num_layers >= rule.num_layers_limit:
        return (
            f"a {architecture} with {num_layers} layers runs as one stage only: "
            f"at {rule.num_layers_limit} layers the attention scale depends on the layer count"
        )
    return None
