from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.errors import BadModelFile, InvalidInput, UnsupportedModel
from shared.llama.cutting import (
    CHUNK_BYTES,
    ModelFile,
    StageFile,
    admission_of,
    cut_stage,
    open_model,
    stage_digest_of,
    vocabulary_file,
)
from shared.llama.gguf import GgufFile, read_gguf
from tests.fakes.gguf_files import Gguf, small_model, string, strings, uint32, uint32s
from tests.fakes.tiny_models import N_VOCAB, WIDTH, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], ModelFile]:
    folder = tmp_path_factory.mktemp("models")

    def opened(architecture: str, tied: bool) -> ModelFile:
        path = folder / f"{architecture}-{tied}.gguf"
        return open_model(path if path.exists() else write_tiny_model(path, architecture=architecture, tied=tied))

    return opened


def from_bytes(tmp_path: Path, content: Gguf) -> ModelFile:
    path = tmp_path / "small.gguf"
    path.write_bytes(content.to_bytes())
    return open_model(path)


def content_of(stage: StageFile) -> bytes:
    return b"".join(stage.read(0, stage.size_bytes))


def written(stage: StageFile, tmp_path: Path) -> GgufFile:
    stage.write_to(tmp_path / "stage.gguf")
    return read_gguf(tmp_path / "stage.gguf")


def tensor_bytes(file: GgufFile, name: str) -> bytes:
    tensor = file.tensors[name]
    return file.read(tensor.start, tensor.start + tensor.size_bytes)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("start", "end"), [(0, 2), (2, 3), (3, 6)])
def test_a_stage_holds_its_layers_renamed_with_the_same_bytes(
    tiny: Callable[[str, bool], ModelFile], tmp_path: Path, architecture: str, tied: bool, start: int, end: int
) -> None:
    model = tiny(architecture, tied)
    file = written(cut_stage(model, start, end), tmp_path)
    kept = [name for name in model.gguf.tensors if name.startswith(tuple(f"blk.{i}." for i in range(start, end)))]
    assert sum(name.startswith("blk.") for name in file.tensors) == len(kept)
    for name in kept:
        _, layer, rest = name.split(".", 2)
        renamed = f"blk.{int(layer) - start}.{rest}"
        assert tensor_bytes(file, renamed) == tensor_bytes(model.gguf, name)
        assert file.tensors[renamed].shape == model.gguf.tensors[name].shape
    assert file.integer(f"{architecture}.block_count") == end - start
    assert file.integer(f"{architecture}.context_length") == model.context_tokens


@pytest.mark.parametrize("tied", [True, False])
def test_the_ends_of_the_model_are_where_the_stages_need_them(
    tiny: Callable[[str, bool], ModelFile], tmp_path: Path, tied: bool
) -> None:
    model = tiny("llama", tied)
    embedding = tensor_bytes(model.gguf, "token_embd.weight")
    head = embedding if tied else tensor_bytes(model.gguf, "output.weight")
    norm = tensor_bytes(model.gguf, "output_norm.weight")
    ones = np.ones(WIDTH, np.float32).tobytes()

    first = written(cut_stage(model, 0, 2), tmp_path)
    assert tensor_bytes(first, "token_embd.weight") == embedding
    assert tensor_bytes(first, "output_norm.weight") == ones
    assert first.integer("llama.vocab_size") == N_VOCAB
    assert first.text("tokenizer.ggml.model") == "llama"
    assert list(first.strings("tokenizer.ggml.tokens")) == list(model.gguf.strings("tokenizer.ggml.tokens"))

    middle = written(cut_stage(model, 2, 4), tmp_path)
    assert middle.tensors["token_embd.weight"].shape == (WIDTH, 32)
    assert not any(tensor_bytes(middle, "token_embd.weight"))
    assert tensor_bytes(middle, "output_norm.weight") == ones
    assert middle.integer("llama.vocab_size") == 32
    assert [name for name in middle.keys if name.startswith("tokenizer.")] == ["tokenizer.ggml.model"]
    assert middle.text("tokenizer.ggml.model") == "no_vocab"

    last = written(cut_stage(model, 4, 6), tmp_path)
    assert tensor_bytes(last, "token_embd.weight") == head
    assert tensor_bytes(last, "output_norm.weight") == norm
    assert last.integer("llama.vocab_size") == N_VOCAB
    assert last.text("tokenizer.ggml.model") == "no_vocab"
    assert not any("output.weight" in stage.tensors for stage in (first, middle, last))


def test_a_cut_of_all_layers_is_the_file_itself(tiny: Callable[[str, bool], ModelFile]) -> None:
    model = tiny("llama", False)
    assert content_of(cut_stage(model, 0, 6)) == model.path.read_bytes()
    assert cut_stage(model, 0, 6).stage_digest() == stage_digest_of(model.path)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 5), (5, 6), (0, 6)])
def test_the_digest_of_a_stage_is_that_of_the_written_file(
    tiny: Callable[[str, bool], ModelFile], tmp_path: Path, start: int, end: int
) -> None:
    stage = cut_stage(tiny("gemma3", False), start, end)
    path = tmp_path / "stage.gguf"
    stage.write_to(path)
    assert path.stat().st_size == stage.size_bytes
    assert stage_digest_of(path) == stage.stage_digest()
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_covers_header_and_tensors_in_file_order(
    tiny: Callable[[str, bool], ModelFile], tmp_path: Path
) -> None:
    stage = cut_stage(tiny("llama", True), 1, 3)
    file = written(stage, tmp_path)

    def digest(data: bytes, person: bytes = b"") -> bytes:
        return blake2b(data, digest_size=32, person=person).digest()

    parts = digest(file.read(0, file.data_start))
    for name in file.tensors:
        parts += digest(tensor_bytes(file, name))
    assert file.data_start == stage.header_bytes
    assert stage.stage_digest() == digest(parts, person=b"bfly/stage/1").hex()


def test_the_root_changes_with_any_tensor_and_with_any_key(tmp_path: Path) -> None:
    original = from_bytes(tmp_path, small_model()).root()
    other_weight = small_model()
    other_weight.tensors[-1].data = bytes(len(other_weight.tensors[-1].data))
    other_key = small_model(more_keys=[string("general.name", "another")])
    assert original == from_bytes(tmp_path, small_model()).root()
    assert len({original, from_bytes(tmp_path, other_weight).root(), from_bytes(tmp_path, other_key).root()}) == 3
    whole = from_bytes(tmp_path, small_model())
    assert whole.root() != cut_stage(whole, 0, 2).stage_digest()


def test_digests_known_from_before_are_not_computed_again(tmp_path: Path) -> None:
    model = from_bytes(tmp_path, small_model())
    model.remember(dict.fromkeys(model.gguf.tensors, bytes(32)))
    assert model.tensor_digest("token_embd.weight") == bytes(32)
    assert model.root() != from_bytes(tmp_path, small_model()).root()


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> ModelFile:
    return open_model(demo_model)


def test_the_demo_model_is_cut_to_the_expected_sizes(demo: ModelFile) -> None:
    sizes = [cut_stage(demo, start, start + 10).size_bytes for start in (0, 10, 20)]
    assert [round(size / 1e6) for size in sizes] == [54, 22, 52]
    assert admission_of(demo).splittable
    assert (demo.num_layers, demo.n_embd, demo.n_vocab, demo.context_tokens) == (30, 576, 49_152, 8_192)
    assert demo.has_chat_template


def test_the_demo_models_layers_keep_their_bytes(demo: ModelFile, tmp_path: Path) -> None:
    stage = cut_stage(demo, 13, 15)
    stage.write_to(tmp_path / "stage.gguf")
    file = read_gguf(tmp_path / "stage.gguf")
    for name in ("ffn_down", "attn_q"):
        assert tensor_bytes(file, f"blk.1.{name}.weight") == tensor_bytes(demo.gguf, f"blk.14.{name}.weight")
    assert stage_digest_of(tmp_path / "stage.gguf") == stage.stage_digest()


@given(data=st.data())
def test_any_range_of_a_stage_reads_as_the_slice_of_the_whole(
    tiny: Callable[[str, bool], ModelFile], data: st.DataObject
) -> None:
    layer = data.draw(st.integers(0, 5))
    stage = cut_stage(tiny("llama", True), layer, data.draw(st.integers(layer + 1, 6)))
    start = data.draw(st.integers(0, stage.size_bytes))
    stop = data.draw(st.integers(start, stage.size_bytes))
    assert b"".join(stage.read(start, stop)) == content_of(stage)[start:stop]


def test_a_read_comes_in_bounded_chunks_and_only_from_within_the_file(demo: ModelFile) -> None:
    stage = cut_stage(demo, 10, 12)
    chunks = list(stage.read(1_000, stage.size_bytes))
    assert sum(map(len, chunks)) == stage.size_bytes - 1_000
    assert max(map(len, chunks)) <= CHUNK_BYTES
    with pytest.raises(ValueError, match="no bytes"):
        next(stage.read(0, stage.size_bytes + 1))


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 2), (-1, 2), (0, 7), (6, 7)])
def test_a_range_that_the_model_does_not_have_is_refused(
    tiny: Callable[[str, bool], ModelFile], start: int, end: int
) -> None:
    with pytest.raises(InvalidInput, match="no range of the 6 layers"):
        cut_stage(tiny("llama", True), start, end)


def test_the_sliding_pattern_of_kept_layers_is_written_out(
    tiny: Callable[[str, bool], ModelFile], tmp_path: Path
) -> None:
    file = written(cut_stage(tiny("gemma3", True), 2, 6), tmp_path)
    assert file.value("gemma3.attention.sliding_window_pattern") == [True, True, True, False]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (uint32("gemma3.attention.sliding_window_pattern", 2), [True, False]),
        (uint32("gemma3.attention.sliding_window_pattern", 0), [True, True]),
        (uint32s("gemma3.attention.sliding_window_pattern", [1, 0, 0, 1]), [False, True]),
    ],
)
def test_a_pattern_in_the_file_goes_before_the_familys(tmp_path: Path, key: bytes, expected: list[bool]) -> None:
    keys = [uint32("gemma3.attention.sliding_window", 16), key]
    model = from_bytes(tmp_path, small_model(num_layers=4, architecture="gemma3", more_keys=keys))
    stage = written(cut_stage(model, 2, 4), tmp_path)
    assert stage.value("gemma3.attention.sliding_window_pattern") == expected


def test_a_stage_without_sliding_layers_has_no_window(tiny: Callable[[str, bool], ModelFile], tmp_path: Path) -> None:
    file = written(cut_stage(tiny("gemma3", True), 5, 6), tmp_path)
    assert file.integer("gemma3.attention.sliding_window") == 0


def test_a_pattern_of_another_length_than_the_model_is_refused(tmp_path: Path) -> None:
    keys = [uint32("gemma3.attention.sliding_window", 16)]
    keys.append(uint32s("gemma3.attention.sliding_window_pattern", [1, 0, 1]))
    model = from_bytes(tmp_path, small_model(architecture="gemma3", more_keys=keys))
    with pytest.raises(BadModelFile, match="3 items for 2 layers"):
        cut_stage(model, 0, 1)


def test_arrays_of_one_item_per_layer_are_sliced_and_others_are_not(tmp_path: Path) -> None:
    more = [
        uint32s("llama.feed_forward_length", [10, 11, 12]),
        strings("llama.layer_names", ["a", "bb", "ccc"]),
        uint32s("llama.rope.dimension_sections", [1, 2, 3]),
        strings("general.languages", ["en", "fr", "de"]),
    ]
    model = from_bytes(tmp_path, small_model(num_layers=3, more_keys=more))
    stage = written(cut_stage(model, 1, 3), tmp_path)
    assert stage.value("llama.feed_forward_length") == [11, 12]
    assert stage.value("llama.layer_names") == ["bb", "ccc"]
    assert stage.value("llama.rope.dimension_sections") == [1, 2, 3]
    assert stage.value("general.languages") == ["en", "fr", "de"]


@pytest.mark.parametrize(
    ("architecture", "num_layers", "more", "rule"),
    [
        ("gemma2", 2, [], "scales the hidden state"),
        ("cohere2", 2, [], "sliding windows"),
        ("deepseek2", 2, [], "differ by their number"),
        ("mamba", 2, [], "recurrent state"),
        ("t5", 2, [], "encoder"),
        ("brandnew", 2, [], "no test shows yet"),
        ("llama", 2, [uint32("llama.expert_count", 8)], "experts"),
        ("gemma3", 62, [], "attention scale"),
    ],
)
def test_a_family_that_must_not_be_cut_runs_whole_and_says_why(
    tmp_path: Path, architecture: str, num_layers: int, more: list[bytes], rule: str
) -> None:
    content = small_model(num_layers=num_layers, architecture=architecture, more_keys=more)
    model = from_bytes(tmp_path, content)
    assert not admission_of(model).splittable
    assert rule in admission_of(model).reason
    assert content_of(cut_stage(model, 0, num_layers)) == content.to_bytes()
    with pytest.raises(UnsupportedModel, match=rule):
        cut_stage(model, 0, 1)


def without(content: Gguf, what: str) -> Gguf:
    content.keys = [key for key in content.keys if what.encode() not in key]
    content.tensors = [tensor for tensor in content.tensors if tensor.name != what]
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Gguf(), "no model family"),
        (without(small_model(), "general.architecture"), "no model family"),
        (without(small_model(), "llama.block_count"), "block_count is missing"),
        (without(small_model(), "llama.context_length"), "context_length is missing"),
        (small_model(num_layers=2_000), "is 2000, not 1 to 1024"),
        (without(small_model(), "token_embd.weight"), "no matrix token_embd"),
        (without(small_model(), "output_norm.weight"), "no output_norm"),
        (without(small_model(), "blk.1.ffn_up.weight"), "tensors of 1 layers, but names 2"),
        (small_model(more_keys=[uint32("split.count", 3)]), "one part of a model"),
        (small_model(more_keys=[string("general.type", "adapter")]), "'adapter', not a model"),
        (small_model(more_keys=[strings("tokenizer.ggml.tokens", ["a", "b"])]), "2 tokens, the embedding 3 rows"),
        (small_model(architecture="../../etc"), "no model family"),
    ],
)
def test_a_file_without_what_serving_needs_is_refused(tmp_path: Path, content: Gguf, reason: str) -> None:
    with pytest.raises(BadModelFile, match=reason):
        from_bytes(tmp_path, content)


def test_a_vocabulary_file_has_every_key_and_no_tensor(tiny: Callable[[str, bool], ModelFile], tmp_path: Path) -> None:
    model = tiny("llama", True)
    file = written(vocabulary_file(model), tmp_path)
    assert not file.tensors
    assert list(file.keys) == list(model.gguf.keys)
    for name, key in file.keys.items():
        source = model.gguf.keys[name]
        assert file.read(key.entry_start, key.stop) == model.gguf.read(source.entry_start, source.stop)


def test_a_model_that_changes_under_a_stage_is_noticed(tmp_path: Path) -> None:
    model = from_bytes(tmp_path, small_model())
    stage = cut_stage(model, 0, 1)
    model.path.write_bytes(small_model(num_layers=3).to_bytes())
    with pytest.raises(BadModelFile, match="changed on disk"):
        content_of(stage)
