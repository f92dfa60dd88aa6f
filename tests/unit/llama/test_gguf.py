import tracemalloc
from pathlib import Path
from time import perf_counter

import gguf
import numpy as np
import pytest

from shared.domain.errors import BadModelFile
from shared.llama.gguf import TENSOR_TYPES, GgufFile, ValueType, read_gguf
from tests.fakes.gguf_files import Gguf, f32, string, strings, uint32, uint32s
from tests.fakes.tiny_models import write_tiny_model


def written(tmp_path: Path, content: Gguf) -> GgufFile:
    path = tmp_path / "a.gguf"
    path.write_bytes(content.to_bytes())
    return read_gguf(path)


def test_every_tensor_type_of_the_gguf_package_is_known_with_its_size() -> None:
    theirs = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {code: (ours.block_elements, ours.block_bytes) for code, ours in TENSOR_TYPES.items()} == theirs
    assert {ours.name for ours in TENSOR_TYPES.values()} == {kind.name for kind in gguf.GGML_QUANT_SIZES}


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_file_is_read_as_the_gguf_package_reads_it(tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", architecture=architecture, tied=False)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(int(dimension) for dimension in tensor.shape)
        assert (found.tensor_type.code, found.start) == (int(tensor.tensor_type), int(tensor.data_offset))
        assert ours.read(found.start, found.start + found.size_bytes) == tensor.data.tobytes()
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(ours.keys) == names
    assert all(ours.value(name) == theirs.fields[name].contents() for name in names)


def test_the_demo_models_header_is_read_quickly_and_in_little_memory(demo_model: Path) -> None:
    began = perf_counter()
    header = read_gguf(demo_model)
    took_s = perf_counter() - began
    tracemalloc.start()
    read_gguf(demo_model)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert header.keys["tokenizer.ggml.tokens"].count == 49_152
    assert len(header.tensors) == 272
    assert peak_bytes < 8 << 20
    assert took_s < 1.0  # some 12 ms; the limit only catches decoding of the tokenizer on a busy machine


def test_long_arrays_of_strings_and_integers_are_read_item_by_item(demo_model: Path) -> None:
    header = read_gguf(demo_model)
    tokens = list(header.strings("tokenizer.ggml.tokens"))
    types = header.integers("tokenizer.ggml.token_type")
    assert len(tokens) == 49_152
    assert tokens[:2] == [b"<|endoftext|>", b"<|im_start|>"]
    assert types is not None
    assert types[:2] == (3, 3)


def test_an_absent_key_is_none_and_a_wrong_type_is_named(tmp_path: Path) -> None:
    header = written(tmp_path, Gguf(keys=[string("a.text", "x"), uint32("a.number", 7), uint32s("a.numbers", [1, 2])]))
    assert header.integer("a.missing") is None
    assert header.integers("a.missing") is None
    assert (header.integer("a.number"), header.text("a.text")) == (7, "x")
    for ask in (lambda: header.integer("a.text"), lambda: header.text("a.number"), lambda: header.integer("a.numbers")):
        with pytest.raises(BadModelFile, match=r"a\.gguf: a\.(text|number)"):
            ask()
    with pytest.raises(BadModelFile, match="not an array of strings"):
        header.strings("a.numbers")
    with pytest.raises(BadModelFile, match="not an array of integers"):
        header.integers("a.text")


def test_version_two_is_read_like_version_three(tmp_path: Path) -> None:
    header = written(tmp_path, Gguf(keys=[strings("a.names", ["x", "yz"])], tensors=[f32("t", 4)], version=2))
    assert header.value("a.names") == ["x", "yz"]
    assert header.keys["a.names"].item_type is ValueType.STRING
    assert header.tensors["t"].size_bytes == 16


def test_a_larger_alignment_moves_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for name in ("a", "b"):
        writer.add_tensor(name, np.ones(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf(path)
    assert header.alignment == 256
    assert header.data_start % 256 == 0
    assert header.tensors["b"].start == header.data_start + 256


def test_a_file_that_changed_since_it_was_read_is_not_read_on(tmp_path: Path) -> None:
    header = written(tmp_path, Gguf(tensors=[f32("t", 4)]))
    header.path.write_bytes(header.path.read_bytes() + b"more")
    with pytest.raises(BadModelFile, match="changed on disk"):
        header.read(0, 4)
    header.path.unlink()
    with pytest.raises(BadModelFile, match="cannot be opened"):
        header.read(0, 4)
