"""`butterfly`: the operator's command."""

import argparse
import os
import sys
from collections.abc import Sequence

from services.cli.commands import chat, config, evidence, models, nodes, plan, receipts, status, tasks, up, worker
from services.cli.commands.arguments import Invocation
from shared.domain.errors import ButterflyError
from shared.runtime.version import butterfly_version

_INTERRUPTED = 130
_GROUPS = (up, worker, status, chat, tasks, receipts, nodes, plan, evidence, models, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: refused, with one line on standard error; 2: wrong usage; 130: interrupted."""
    parsed = _parser().parse_args(arguments)
    environ = dict(os.environ)  # noqa: TID251  the operator's: read by load_config, handed on to what is started
    try:
        code = parsed.run(Invocation(parsed, environ))
        sys.stdout.flush()
        return int(code)
    except ButterflyError as error:
        print(f"butterfly: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="butterfly", description="One language model on many machines that nobody has to trust."
    )
    parser.add_argument("--version", action="version", version=f"butterfly {butterfly_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for group in _GROUPS:
        group.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
