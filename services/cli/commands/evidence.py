"""`butterfly evidence`: what proved nodes guilty."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from services.cli.commands.arguments import Invocation, Subcommands, add_coordinator, add_data_dir, coordinator_of
from services.cli.domain.table import table

if TYPE_CHECKING:
    from services.cli.clients.control_plane import Coordinator

T = TypeVar("T")


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("evidence", help="list and download what proved workers guilty")
    add_data_dir(parser)
    actions = parser.add_subparsers(required=True, metavar="ACTION", title="actions")

    listing = actions.add_parser("list", help="what is kept; evidence is kept for 90 days")
    listing.set_defaults(run=_list)

    get = actions.add_parser("get", help="one piece of evidence, as JSON")
    get.add_argument("evidence_id", metavar="ID")
    get.set_defaults(run=_get)

    for action in (listing, get):
        add_coordinator(action)


def _list(invocation: Invocation) -> int:
    found = asyncio.run(_ask(invocation, lambda coordinator: coordinator.evidence()))
    rows = [(each.evidence_id, each.node_id, str(each.rule), each.detail) for each in found]
    print(table(("EVIDENCE", "NODE", "RULE", "DETAIL"), rows) if rows else "no evidence")
    return 0


def _get(invocation: Invocation) -> int:
    evidence_id = invocation.arguments.evidence_id
    found = asyncio.run(_ask(invocation, lambda coordinator: coordinator.evidence_of(evidence_id)))
    print(json.dumps(found, indent=2))
    return 0


async def _ask(invocation: Invocation, question: "Callable[[Coordinator], Awaitable[T]]") -> T:
    # Imported here: they bring the HTTP client along, which the other commands need not wait for.
    from services.cli.clients.control_plane import Coordinator
    from shared.runtime.clock import SystemClock

    url, service_token = coordinator_of(invocation)
    coordinator = Coordinator(url, service_token=service_token, now=SystemClock().now_s)
    try:
        return await question(coordinator)
    finally:
        await coordinator.aclose()
