"""`butterfly config`: is a config.toml right?"""

from pathlib import Path

from services.cli.commands.arguments import Invocation, Subcommands
from shared.runtime.config import CONFIG_PATH_VARIABLE, load_config

_DEFAULT_FILE = Path("config.toml")


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("config", help="check a config.toml")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="read the file and the environment as every service does")
    check.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help=f"default: ${CONFIG_PATH_VARIABLE}, else {_DEFAULT_FILE}"
    )
    check.set_defaults(run=_check)


def _check(invocation: Invocation) -> int:
    file = invocation.arguments.file or Path(invocation.environ.get(CONFIG_PATH_VARIABLE) or _DEFAULT_FILE)
    load_config(file, invocation.environ)
    print(f"OK: {file}")
    return 0
