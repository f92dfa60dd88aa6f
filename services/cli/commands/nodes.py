"""`butterfly nodes`: the workers of a cluster, which layers they hold, and which of them may serve."""

import asyncio
from collections.abc import Sequence

from services.cli.clients.gateway import Gateway, Node
from services.cli.commands.arguments import Invocation, Subcommands, add_api, add_coordinator, api_url, coordinator_of
from services.cli.domain.table import table


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("nodes", help="list, quarantine and reinstate workers")
    add_api(parser)
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(metavar="ACTION", title="actions (default: list)")

    listing = actions.add_parser("list", help="the workers and the layers they hold")
    add_api(listing, inherited=True)
    listing.set_defaults(run=_list)

    quarantine = actions.add_parser("quarantine", help="give a worker no new work until it is reinstated")
    quarantine.add_argument("--reason", default="by the operator", metavar="TEXT", help="shown with the worker")
    quarantine.set_defaults(run=_quarantine)

    reinstate = actions.add_parser("reinstate", help="let a quarantined or evicted worker serve again")
    reinstate.set_defaults(run=_reinstate)

    for action in (quarantine, reinstate):
        action.add_argument("node", metavar="NODE")
        add_coordinator(action)


def _list(invocation: Invocation) -> int:
    print(node_table(Gateway(api_url(invocation.arguments)).nodes()))
    return 0


def _quarantine(invocation: Invocation) -> int:
    node = invocation.arguments.node
    asyncio.run(_change(invocation, quarantine_for=invocation.arguments.reason))
    print(f"{node} is quarantined: `butterfly nodes reinstate {node}` ends it")
    return 0


def _reinstate(invocation: Invocation) -> int:
    asyncio.run(_change(invocation, quarantine_for=None))
    print(f"{invocation.arguments.node} may serve again")
    return 0


async def _change(invocation: Invocation, *, quarantine_for: str | None) -> None:
    """None: reinstate."""
    # Imported here: they bring the HTTP client along, which the other commands need not wait for.
    from services.cli.clients.control_plane import Coordinator
    from shared.runtime.clock import SystemClock

    url, service_token = coordinator_of(invocation)
    coordinator = Coordinator(url, service_token=service_token, now=SystemClock().now_s)
    try:
        if quarantine_for is None:
            await coordinator.reinstate(invocation.arguments.node)
        else:
            await coordinator.quarantine(invocation.arguments.node, quarantine_for)
    finally:
        await coordinator.aclose()


def node_table(nodes: Sequence[Node]) -> str:
    if not nodes:
        return "no workers"
    return table(("NODE", "STATE", "ADDRESS", "LAYERS", "NOTE"), [_row(node) for node in nodes])


def _row(node: Node) -> tuple[str, str, str, str, str]:
    stages = sorted(node.stages, key=lambda stage: (stage.model, stage.start))
    held = ", ".join(f"{stage.model} {stage.start}-{stage.end}" for stage in stages)
    return node.node_id, node.state, node.address, held or "-", node.reason or ""
