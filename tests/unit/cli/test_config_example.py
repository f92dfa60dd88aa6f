"""config.toml at the top of the repository: complete, and at the defaults it claims."""

import re
from pathlib import Path

from shared.runtime.config import Config, load_config

EXAMPLE = Path(__file__).parents[3] / "config.toml"


def test_the_example_states_the_defaults() -> None:
    assert load_config(EXAMPLE, {}) == Config()


def test_the_example_names_every_key() -> None:
    text = EXAMPLE.read_text()
    sections = re.split(r"^\[(\w+)\]", text, flags=re.MULTILINE)
    told = {
        section: set(re.findall(r"^(?:# )?(\w+) =", body, flags=re.MULTILINE))
        for section, body in zip(sections[1::2], sections[2::2], strict=True)
    }
    assert told == {name: set(type(value).model_fields) for name, value in Config()}
