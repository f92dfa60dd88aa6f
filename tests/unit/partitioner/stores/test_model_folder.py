import json
import os
from pathlib import Path

import pytest

from services.partitioner.stores.digest_file import digest_path
from services.partitioner.stores.model_folder import ModelFolder
from shared.domain.errors import BadModelFile, ModelNotFound
from shared.domain.ids import ModelId
from shared.domain.layers import stage_weight_bytes
from shared.llama.cutting import open_model
from tests.fakes.gguf_files import small_model, string, uint32, uint32s
from tests.fakes.tiny_models import WIDTH, write_tiny_model

TINY = ModelId("tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "tiny.gguf", tied=False)
    return tmp_path


def scanned(folder: Path) -> ModelFolder:
    store = ModelFolder(folder)
    store.scan()
    return store


def completed(folder: Path) -> ModelFolder:
    store = scanned(folder)
    for model_id in store.pending():
        store.complete(model_id)
    return store


def test_a_new_model_is_pending_until_its_digests_are_known(folder: Path) -> None:
    store = scanned(folder)
    assert (store.pending(), store.models(), store.model(TINY)) == ((TINY,), (), None)
    store.complete(TINY)
    info = store.model(TINY)
    assert info is not None
    assert (store.pending(), store.models()) == ((), (info,))
    assert info.root == open_model(folder / "tiny.gguf").root()


def test_digests_are_kept_beside_the_file_for_the_next_start(folder: Path) -> None:
    expected = completed(folder).models()
    again = scanned(folder)
    assert (again.pending(), again.models()) == ((), expected)


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1}', "tensors", "hex", "size"])
def test_a_digest_file_that_does_not_fit_is_ignored(folder: Path, damage: str) -> None:
    completed(folder)
    kept = digest_path(folder / "tiny.gguf")
    content = json.loads(kept.read_text())
    match damage:
        case "tensors":
            content["tensors"].popitem()
        case "hex":
            content["tensors"]["output_norm.weight"] = "xyz"
        case "size":
            content["size_bytes"] += 1
        case _:
            content = None
    kept.write_text(json.dumps(content) if content else damage)
    assert scanned(folder).pending() == (TINY,)


def test_a_changed_file_is_read_and_digested_again(folder: Path) -> None:
    store = completed(folder)
    before = store.model(TINY)
    write_tiny_model(folder / "tiny.gguf", seed=7)
    os.utime(folder / "tiny.gguf", ns=(1, 1))
    assert not store.is_current(TINY)
    store.scan()
    assert store.pending() == (TINY,)
    store.complete(TINY)
    after = store.model(TINY)
    assert before is not None
    assert after is not None
    assert before.root != after.root


def test_an_unchanged_file_is_not_read_again(folder: Path) -> None:
    store = completed(folder)
    stage = store.stage(TINY, 0, 2)
    store.scan()
    assert store.is_current(TINY)
    assert store.stage(TINY, 0, 2) is stage


def test_a_removed_file_is_forgotten(folder: Path) -> None:
    store = completed(folder)
    (folder / "tiny.gguf").unlink()
    assert not store.is_current(TINY)
    store.scan()
    assert store.models() == ()
    with pytest.raises(ModelNotFound):
        store.stage(TINY, 0, 2)


def test_bad_files_are_listed_with_the_reason_until_they_are_mended(folder: Path) -> None:
    whole = (folder / "tiny.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[:-50_000])
    (folder / "no model.gguf").write_bytes(whole)
    (folder / "notes.txt").write_text("not looked at")
    heads = small_model(more_keys=[uint32s("llama.attention.head_count_kv", [1, 2, 3])])
    (folder / "heads.gguf").write_bytes(heads.to_bytes())
    store = scanned(folder)
    reasons = {refused.file: refused.reason for refused in store.refused()}
    assert reasons.keys() == {"cut.gguf", "no model.gguf", "heads.gguf"}
    assert "ends inside the tensor" in reasons["cut.gguf"]
    assert "rename the file" in reasons["no model.gguf"]
    assert "head_count_kv has 3 items for 2 layers" in reasons["heads.gguf"]
    (folder / "cut.gguf").write_bytes(whole)
    store.scan()
    assert ModelId("cut") in store.pending()


def test_a_missing_folder_holds_no_models(tmp_path: Path) -> None:
    assert scanned(tmp_path / "nowhere").models() == ()


def test_a_file_that_changes_while_it_is_digested_is_refused(folder: Path) -> None:
    store = scanned(folder)
    write_tiny_model(folder / "tiny.gguf", num_layers=2)
    with pytest.raises(BadModelFile, match="changed on disk"):
        store.complete(TINY)


def test_a_folder_that_cannot_be_written_to_only_costs_the_digests(folder: Path) -> None:
    (folder / "tiny.gguf.digests.json.part").mkdir()
    assert [info.model_id for info in completed(folder).models()] == [TINY]
    assert scanned(folder).pending() == (TINY,)


def test_a_model_is_described_by_its_header(folder: Path) -> None:
    info = completed(folder).models()[0]
    assert (info.architecture, info.num_layers, info.n_embd, info.splittable) == ("llama", 6, WIDTH, True)
    assert {layer.kv_bytes_per_token for layer in info.layers} == {2 * 2 * 32 * 34 // 32}
    file = open_model(folder / "tiny.gguf")
    tensors = sum(tensor.size_bytes for tensor in file.gguf.tensors.values())
    assert stage_weight_bytes(info, 0, 6) == tensors
    assert info.embedding_bytes == file.gguf.tensors["token_embd.weight"].size_bytes
    assert info.head_bytes == file.head.size_bytes + 4 * WIDTH


def test_a_tied_head_is_counted_at_both_ends(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny.gguf", tied=True)
    info = completed(tmp_path).models()[0]
    assert info.head_bytes == info.embedding_bytes + 4 * WIDTH


def test_heads_may_differ_by_layer(tmp_path: Path) -> None:
    more = [uint32s("llama.attention.head_count_kv", [1, 2]), uint32("llama.attention.key_length", 32)]
    content = small_model(more_keys=[*more, uint32("llama.attention.value_length", 32)])
    (tmp_path / "small.gguf").write_bytes(content.to_bytes())
    info = completed(tmp_path).models()[0]
    assert [layer.kv_bytes_per_token for layer in info.layers] == [68, 136]


def test_a_family_that_runs_whole_says_so(tmp_path: Path) -> None:
    (tmp_path / "g.gguf").write_bytes(small_model(architecture="gemma2").to_bytes())
    info = completed(tmp_path).models()[0]
    assert not info.splittable
    assert "gemma2" in info.reason


def test_the_vocabulary_and_the_token_table_are_made_once(folder: Path) -> None:
    store = completed(folder)
    assert store.vocabulary(TINY) is store.vocabulary(TINY)
    assert store.token_table(TINY) is store.token_table(TINY)
    assert store.token_table(TINY)[:4] == (512).to_bytes(4, "little")


def test_ids_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "-x.gguf").write_bytes(small_model(more_keys=[string("general.name", "x")]).to_bytes())
    assert [refused.file for refused in scanned(tmp_path).refused()] == ["-x.gguf"]
