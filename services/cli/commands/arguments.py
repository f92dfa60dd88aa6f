"""Arguments that several commands take."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from services.cli.stores.data_dir import DEFAULT_DATA_DIR, DataDir
from shared.domain.errors import InvalidInput
from shared.runtime.config import load_config

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DEFAULT_API = "http://127.0.0.1:8080"
DEMO = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the command."""

    arguments: argparse.Namespace
    environ: Mapping[str, str]


def add_data_dir(parser: argparse.ArgumentParser, *, inherited: bool = False) -> None:
    """`inherited`: of an action whose command has the argument already: it may stand at either place."""
    default = argparse.SUPPRESS if inherited else DEFAULT_DATA_DIR
    help_text = f"folder of the cluster ({DEFAULT_DATA_DIR})"
    parser.add_argument("--data-dir", type=Path, default=default, metavar="D", help=help_text)


def add_api(parser: argparse.ArgumentParser, *, inherited: bool = False) -> None:
    """Of commands that talk to a running cluster."""
    default = argparse.SUPPRESS if inherited else None
    help_text = "gateway of the cluster (default: that of the data folder)"
    parser.add_argument("--api", default=default, metavar="URL", help=help_text)
    add_data_dir(parser, inherited=inherited)


def api_url(arguments: argparse.Namespace) -> str:
    """The gateway that was named, else that of the cluster in the data folder, else the default address."""
    if arguments.api:
        return str(arguments.api)
    running = DataDir(arguments.data_dir).running()
    return running.api_url if running else DEFAULT_API


def add_coordinator(action: argparse.ArgumentParser) -> None:
    """Of actions that only an operator may do."""
    help_text = "of a cluster elsewhere; its service token comes from BUTTERFLY_SECURITY__SERVICE_TOKEN"
    action.add_argument("--coordinator", metavar="URL", help=help_text)
    add_data_dir(action, inherited=True)


def coordinator_of(invocation: Invocation) -> tuple[str, str]:
    """URL and service token: of the cluster that runs in the data folder, else as configured."""
    config = load_config(None, invocation.environ)
    configured_token = config.security.service_token.get_secret_value()
    named = invocation.arguments.coordinator
    if named:
        if not named.startswith(("http://", "https://")):
            raise InvalidInput(f"--coordinator: {named!r} should be a URL such as http://127.0.0.1:8083")
        return named, configured_token
    data = DataDir(invocation.arguments.data_dir)
    running, known = data.running(), data.known_secrets()
    if running is None:
        return config.services.coordinator_url[0], configured_token
    return running.coordinator_url, configured_token or (known.service_token if known is not None else "")


def positive(text: str) -> int:
    """For argparse: a whole number from 1."""
    return _whole(text, 1)


def not_negative(text: str) -> int:
    """For argparse: a whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, lowest: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= lowest):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from {lowest}")
    return int(text)
