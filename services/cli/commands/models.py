"""`butterfly models`: which models a cluster may serve."""

import asyncio
import sys

from services.cli.commands.arguments import Invocation, Subcommands, add_data_dir
from services.cli.domain.model_names import SUFFIX
from services.cli.domain.table import table
from services.cli.model_adding import add_model
from services.cli.stores.data_dir import ClusterStatus, DataDir
from services.cli.stores.demo_model import DEMO_MODEL, pull
from services.cli.stores.model_folder import ModelFolder
from shared.domain.errors import BadModelFile
from shared.llama.cutting import admission_of, open_model
from shared.llama.library import find_library_file, open_library_file

_MIB = 1024 * 1024


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("models", help="list, fetch, add and remove models")
    add_data_dir(parser)
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(metavar="ACTION", title="actions (default: list)")

    listing = actions.add_parser("list", help="the models in the data folder")
    listing.set_defaults(run=_list)

    fetch = actions.add_parser("pull", help="fetch a known model")
    fetch.add_argument("name", metavar="NAME", help=DEMO_MODEL.name)
    fetch.set_defaults(run=_pull)

    add = actions.add_parser("add", help="add a GGUF file, after checking it and trying to cut it")
    add.add_argument("source", metavar="PATH|URL")
    add.add_argument("--name", metavar="NAME", help="default: after the file")
    add.set_defaults(run=_add)

    remove = actions.add_parser("remove", help="delete a model's file")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove)

    for action in (listing, fetch, add, remove):
        add_data_dir(action, inherited=True)


def _list(invocation: Invocation) -> int:
    folder = _folder(invocation)
    rows = [_row(folder, name) for name in folder.names()]
    head = ("MODEL", "FAMILY", "LAYERS", "CONTEXT", "SIZE", "NOTE")
    print(table(head, rows) if rows else f"no models in {folder.path}: `butterfly models pull {DEMO_MODEL.name}`")
    return 0


def _pull(invocation: Invocation) -> int:
    path, fetched = pull(invocation.arguments.name, _folder(invocation))
    print(f"{path} {'is there now' if fetched else 'was there already'}")
    if fetched:
        _tell_cluster(invocation)
    return 0


def _add(invocation: Invocation) -> int:
    arguments = invocation.arguments
    open_library_file(find_library_file())
    added = add_model(arguments.source, _folder(invocation), name=arguments.name, progress=_progress)
    print(f"{added.name} {'is added' if added.is_new else 'was there already'}")
    if added.notice:
        print(added.notice)
    if added.is_new:
        _tell_cluster(invocation)
    return 0


def _remove(invocation: Invocation) -> int:
    name = invocation.arguments.name
    _folder(invocation).remove(name)
    print(f"{name} is removed")
    _tell_cluster(invocation)
    return 0


def _folder(invocation: Invocation) -> ModelFolder:
    return ModelFolder(DataDir(invocation.arguments.data_dir).models)


def _row(folder: ModelFolder, name: str) -> tuple[str, ...]:
    path = folder.path_of(name)
    size = f"{path.stat().st_size / _MIB:.0f} MiB"
    try:
        model = open_model(path)
    except BadModelFile as error:
        return name, "-", "-", "-", size, error.message.removeprefix(f"{name}{SUFFIX}: ")
    return (
        name,
        model.architecture,
        str(model.num_layers),
        str(model.context_tokens),
        size,
        admission_of(model).reason,
    )


def _tell_cluster(invocation: Invocation) -> None:
    """A cluster that runs in this data folder learns of the change at once."""
    data = DataDir(invocation.arguments.data_dir)
    running, known = data.running(), data.known_secrets()
    if running is None or known is None:
        return
    asyncio.run(_rescan(running, known.service_token))
    print("the running cluster knows")


async def _rescan(running: ClusterStatus, service_token: str) -> None:
    # Imported here: they bring the HTTP client along, which the other commands need not wait for.
    from services.cli.clients.control_plane import Partitioner
    from shared.runtime.clock import SystemClock

    partitioner = Partitioner(running.partitioner_url, service_token=service_token, now=SystemClock().now_s)
    try:
        await partitioner.rescan()
    finally:
        await partitioner.aclose()


def _progress(there: int, total: int | None) -> None:
    if sys.stderr.isatty():
        whole = f" of {total / _MIB:.0f}" if total else ""
        print(f"\r{there / _MIB:.0f}{whole} MiB", end="\n" if there == total else "", file=sys.stderr, flush=True)
