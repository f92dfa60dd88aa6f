"""`butterfly nodes`: the workers of a cluster, which layers they hold, and which of them may serve."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING

from services.cli.clients.gateway import Gateway, Node
from services.cli.commands.arguments import Invocation, Subcommands, add_api, add_coordinator, api_url, coordinator_of
from services.cli.domain.table import table

if TYPE_CHECKING:
    from services.cli.clients.control_plane import Coordinator


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("nodes", help="list, measure, drain, quarantine and reinstate workers")
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

    drain = actions.add_parser("drain", help="give a worker no new work; what runs there goes on")
    drain.set_defaults(run=_drain)

    resume = actions.add_parser("resume", help="give a drained worker work again")
    resume.set_defaults(run=_resume)

    measure = actions.add_parser("measure", help="try anew how fast a worker is, once nobody needs it")
    measure.set_defaults(run=_measure)

    for action in (quarantine, reinstate, drain, resume, measure):
        action.add_argument("node", metavar="NODE")
        add_coordinator(action)


def _list(invocation: Invocation) -> int:
    print(node_table(Gateway(api_url(invocation.arguments)).nodes()))
    return 0


def _quarantine(invocation: Invocation) -> int:
    node = invocation.arguments.node
    _ask(invocation, lambda coordinator: coordinator.quarantine(node, invocation.arguments.reason))
    print(f"{node} is quarantined: `butterfly nodes reinstate {node}` ends it")
    return 0


def _reinstate(invocation: Invocation) -> int:
    node = invocation.arguments.node
    _ask(invocation, lambda coordinator: coordinator.reinstate(node))
    print(f"{node} may serve again")
    return 0


def _drain(invocation: Invocation) -> int:
    node = invocation.arguments.node
    _ask(invocation, lambda coordinator: coordinator.drain(node))
    print(f"{node} gets no new work: `butterfly nodes resume {node}` ends it")
    return 0


def _resume(invocation: Invocation) -> int:
    node = invocation.arguments.node
    _ask(invocation, lambda coordinator: coordinator.resume(node))
    print(f"{node} gets work again")
    return 0


def _measure(invocation: Invocation) -> int:
    node = invocation.arguments.node
    _ask(invocation, lambda coordinator: coordinator.measure(node))
    print(f"{node} will be measured while it has nothing else to do: `butterfly nodes` shows its speed")
    return 0


def _ask(invocation: Invocation, change: Callable[["Coordinator"], Coroutine[None, None, None]]) -> None:
    # Imported here: they bring the HTTP client along, which the other commands need not wait for.
    from services.cli.clients.control_plane import Coordinator
    from shared.runtime.clock import SystemClock

    url, service_token = coordinator_of(invocation)

    async def ask() -> None:
        coordinator = Coordinator(url, service_token=service_token, now=SystemClock().now_s)
        try:
            await change(coordinator)
        finally:
            await coordinator.aclose()

    asyncio.run(ask())


def node_table(nodes: Sequence[Node]) -> str:
    if not nodes:
        return "no workers"
    return table(("NODE", "STATE", "ADDRESS", "SPEED", "LAYERS", "NOTE"), [_row(node) for node in nodes])


def _row(node: Node) -> tuple[str, ...]:
    stages = sorted(node.stages, key=lambda stage: (stage.model, stage.start))
    held = ", ".join(f"{stage.model} {stage.start}-{stage.end}" for stage in stages)
    return node.node_id, node.state, node.address, _speed(node), held or "-", node.reason or ""


def _speed(node: Node) -> str:
    """1 is a core of the machine that the figures in the README were measured on."""
    if node.capability is None or not node.capability.speed:
        return "-"
    return f"{node.capability.speed:.2f}{'' if node.capability.is_measured else ' (not measured)'}"
