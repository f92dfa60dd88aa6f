import pytest

from services.cli.domain.model_names import checked, name_from
from shared.domain.errors import InvalidInput


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/somewhere/Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "qwen2.5-0.5b-instruct-q4_k_m"),
        ("model.gguf", "model"),
        ("https://example.org/files/My%20Model.GGUF?download=true", "my-20model"),
        ("./a model.gguf", "a-model"),
    ],
)
def test_a_model_is_called_after_its_file(source: str, expected: str) -> None:
    assert name_from(source) == expected


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a.gguf", "-x", "ü", "x" * 129])
def test_what_is_no_file_name_is_no_model_name(name: str) -> None:
    with pytest.raises(InvalidInput):
        checked(name)
