"""`butterfly nodes`: the workers of a cluster, and which layers they hold."""

from collections.abc import Sequence

from services.cli.clients.gateway import Gateway, Node
from services.cli.commands.arguments import Invocation, Subcommands, add_api, api_url
from services.cli.domain.table import table


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("nodes", help="the workers and the layers they hold")
    add_api(parser)
    parser.set_defaults(run=run)


def run(invocation: Invocation) -> int:
    print(node_table(Gateway(api_url(invocation.arguments)).nodes()))
    return 0


def node_table(nodes: Sequence[Node]) -> str:
    if not nodes:
        return "no workers"
    return table(("NODE", "STATE", "ADDRESS", "LAYERS"), [_row(node) for node in nodes])


def _row(node: Node) -> tuple[str, str, str, str]:
    stages = sorted(node.stages, key=lambda stage: (stage.model, stage.start))
    held = ", ".join(f"{stage.model} {stage.start}-{stage.end}" for stage in stages)
    return node.node_id, node.state, node.address, held or node.reason or "-"
