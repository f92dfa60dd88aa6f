"""`butterfly receipts`: the proof of an answer, fetched and checked."""

import json
from pathlib import Path

from services.cli.clients.gateway import Gateway
from services.cli.commands.arguments import Invocation, Subcommands, add_api, api_url
from shared.domain.errors import InvalidInput


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("receipts", help="fetch and check the proof of an answer")
    add_api(parser)
    actions = parser.add_subparsers(required=True, metavar="ACTION", title="actions")

    get = actions.add_parser("get", help="the receipts of a task, as JSON")
    get.add_argument("task_id", metavar="TASK")
    get.set_defaults(run=_get)

    keys = actions.add_parser("keys", help="the public keys of the cluster as it is now, for `verify --keys`")
    keys.set_defaults(run=_keys)

    verify = actions.add_parser("verify", help="check receipts; with a file, no service is asked")
    verify.add_argument("source", metavar="FILE|TASK", help="a file that `receipts get` wrote, or a task's id")
    verify.add_argument(
        "--keys", type=Path, metavar="F", help='{"coordinator": hex, "nodes": {id: hex}}, to trust alone'
    )
    verify.add_argument("--replay", type=Path, metavar="MODEL", help="compute the answer again from this GGUF file")
    verify.set_defaults(run=_verify)

    for action in (get, keys, verify):
        add_api(action, inherited=True)


def _get(invocation: Invocation) -> int:
    receipt = Gateway(api_url(invocation.arguments)).receipt(invocation.arguments.task_id)
    print(json.dumps(receipt, indent=2))
    return 0


def _keys(invocation: Invocation) -> int:
    print(json.dumps(Gateway(api_url(invocation.arguments)).keys(), indent=2))
    return 0


def _verify(invocation: Invocation) -> int:
    # Imported here: they bring cryptography and numpy along, which the other commands need not wait for.
    from services.cli.receipt_check import check, read_keys, replay

    arguments = invocation.arguments
    trusted = None if arguments.keys is None else read_keys(arguments.keys)
    content = _content(invocation)
    guarantee = check(content, trusted)
    print(guarantee.sentence)
    print(f"coordinator {guarantee.coordinator_key.hex()}")
    if arguments.replay is not None:
        print(replay(content, arguments.replay))
    return 0


def _content(invocation: Invocation) -> bytes:
    source = invocation.arguments.source
    path = Path(source)
    if path.is_file():
        return path.read_bytes()
    if path.suffix or path.name != source:
        raise InvalidInput(f"there is no file {source}")
    return json.dumps(Gateway(api_url(invocation.arguments)).receipt(source)).encode()
