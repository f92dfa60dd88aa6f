from services.partitioner.domain.layer_costs import ATTENTION_ROWS, LayerShape, layer_info

SMOLLM2 = LayerShape(
    index=3,
    n_embd=576,
    weight_bytes=2_216_448,
    matrix_elements=3_538_944,
    num_heads=9,
    num_kv_heads=3,
    key_length=64,
    value_length=64,
)


def test_a_layers_costs_follow_its_shape() -> None:
    info = layer_info(SMOLLM2)
    assert info.name == "blk.3"
    assert info.activation_bytes == 576 * 4
    assert info.kv_bytes_per_token == 408  # 2 x 3 heads x 64 x 34/32
    assert info.flops_per_token == 2 * 3_538_944 + 2 * 9 * 128 * ATTENTION_ROWS


def test_a_head_size_that_q8_0_cannot_hold_is_kept_in_f16() -> None:
    odd = LayerShape(0, 80, 1, 1, num_heads=4, num_kv_heads=4, key_length=20, value_length=20)
    assert layer_info(odd).kv_bytes_per_token == 4 * 40 * 2
