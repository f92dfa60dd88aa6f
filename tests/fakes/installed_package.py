"""A package as if it were installed: its files and what an installer writes beside them."""

import tomllib
from pathlib import Path


def install(source: Path, site: Path) -> None:
    """Put the modules of a project folder into `site`, with the entry points that its pyproject.toml names."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    for module in source.glob("*.py"):
        (site / module.name).write_text(module.read_text())
    points = [
        line
        for group, named in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in named.items()))
    ]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text("\n".join(points) + "\n")


def write_package(folder: Path, *, code: str, points: dict[str, str]) -> Path:
    """A project folder with one module `brought` that brings strategies."""
    folder.mkdir()
    (folder / "brought.py").write_text(code)
    lines = [f'{name} = "{value}"' for name, value in points.items()]
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "brought"\nversion = "1"\n[project.entry-points."butterfly.strategies"]\n' + "\n".join(lines)
    )
    return folder
