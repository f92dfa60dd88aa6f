from pathlib import Path

import pytest

from shared.domain.errors import AbiMismatch, MissingLibrary
from shared.llama.library import (
    LAYOUTS,
    ContextParams,
    ModelParams,
    check_defaults,
    find_library_file,
    layout_of,
    load_library,
    open_library_file,
)


def test_the_library_is_found_without_importing_its_package() -> None:
    assert find_library_file().name.startswith("xllamacpp")


def test_the_installed_library_passes_its_own_check_and_is_loaded_once() -> None:
    library = load_library()

    assert library is load_library()
    assert library.build_class.startswith("llama/b11549/xllamacpp-2026.10.11549/")


def test_a_version_without_a_written_layout_is_refused() -> None:
    with pytest.raises(AbiMismatch, match=r"0\.0\.1 is installed, but only 2026\.10\.11549"):
        layout_of("0.0.1")


def test_every_supported_version_has_a_layout() -> None:
    assert all(layout_of(version) is layout for version, layout in LAYOUTS.items())


def test_defaults_in_the_wrong_fields_are_taken_for_a_wrong_layout() -> None:
    api = load_library().api
    shifted = ContextParams.from_buffer_copy(bytes(4) + bytes(api.llama_context_default_params())[:-4])

    with pytest.raises(AbiMismatch, match="n_batch"):
        check_defaults(api.llama_model_default_params(), shifted)


def test_wrong_model_defaults_are_taken_for_a_wrong_layout() -> None:
    with pytest.raises(AbiMismatch, match="use_extra_bufts"):
        check_defaults(ModelParams(), load_library().api.llama_context_default_params())


def test_a_missing_libgomp_is_named_with_the_line_that_installs_it() -> None:
    def refuse(_path: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")

    with pytest.raises(MissingLibrary, match="apt-get install libgomp1"):
        open_library_file(Path("xllamacpp.abi3.so"), refuse)  # type: ignore[arg-type] # it never returns


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "xllamacpp.so"
    file.write_text("no library")

    with pytest.raises(MissingLibrary, match=r"xllamacpp\.so cannot be loaded"):
        open_library_file(file)
