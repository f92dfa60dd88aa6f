"""`butterfly plan`: who would hold which layers, what to expect of it, and what it is."""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from services.cli.clients.gateway import Gateway, NodeMemory, PlannedSeat, Predicted, Preview
from services.cli.commands.arguments import Invocation, Subcommands, add_api, api_url, positive
from services.cli.domain.table import table
from shared.domain.errors import InvalidInput, ModelNotFound, PeerUnavailable

MODES = ("none", "audit", "quorum")
OBJECTIVES = ("latency", "throughput")
ANSWER_TOKENS = 64
MEBIBYTE = 1024 * 1024
PROMPT_ID = 300
"""Any token will do: the answers are thrown away."""


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser(
        "plan",
        help="who would hold which layers, and how fast that is",
        description="Preview the plan for the workers that are ready now. With --run, also measure it by real answers.",
    )
    add_api(parser)
    parser.add_argument("--model", metavar="M", help="default: the first that the cluster serves")
    parser.add_argument("--strategy", metavar="S", help="default: as configured")
    parser.add_argument("--objective", choices=OBJECTIVES, help="default: as configured")
    parser.add_argument("--stages", type=positive, metavar="N")
    parser.add_argument("--verification", choices=MODES, help="default: as configured")
    parser.add_argument("--sequences", type=positive, default=1, metavar="N", help="answers at once (%(default)s)")
    parser.add_argument("--prompt-tokens", type=positive, default=128, metavar="N", help="(%(default)s)")
    parser.add_argument("--run", dest="measures", action="store_true", help="ask for such answers, and time them")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(invocation: Invocation) -> int:
    arguments = invocation.arguments
    if arguments.measures and (arguments.strategy or arguments.objective or arguments.stages):
        raise InvalidInput(
            "--run measures the plan that the cluster goes by: leave out --strategy, --objective, --stages"
        )
    gateway = Gateway(api_url(arguments))
    model = arguments.model or next(iter(gateway.models()), None)
    if model is None:
        raise ModelNotFound("the cluster serves no model: `butterfly models add` adds one")
    wish: dict[str, object] = {
        "model": model,
        "sequences": arguments.sequences,
        "prompt_tokens": arguments.prompt_tokens,
        "context_tokens": arguments.prompt_tokens + ANSWER_TOKENS,
    }
    chosen = {name: getattr(arguments, name) for name in ("strategy", "objective", "stages", "verification")}
    wish |= {name: value for name, value in chosen.items() if value is not None}
    told = gateway.preview_json(wish)
    measured = _measured(gateway, model, arguments) if arguments.measures else None
    if arguments.json:
        print(json.dumps({**told, "measured": None if measured is None else asdict(measured)}, indent=2))
    else:
        print(report(gateway.parsed_preview(told), measured))
    return 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Of answers that were asked for together."""

    tokens_per_s: float
    first_token_ms: float
    """Median."""


def report(preview: Preview, measured: Measured | None) -> str:
    parts = [
        f"{preview.model}, {preview.strategy}: {_count(len(preview.pipelines), 'pipeline')}",
        table(("LANE", "STAGE", "LAYERS", "NODE", "DECODE", "PREFILL"), [_seat(seat) for seat in preview.seats]),
        table(("NODE", "USED", "RESERVED", "MEMORY"), [_memory(node) for node in preview.nodes]),
        table(("", "PREDICTED", "MEASURED"), _figures(preview.predicted, measured)),
    ]
    if len(preview.pipelines) > 1:
        rows = [(pipeline.plan_id, f"{pipeline.tokens_per_s:.1f}") for pipeline in preview.pipelines]
        parts.append(table(("PIPELINE, ALL BUSY", "TOKENS/S"), rows))
    if not preview.predicted.is_measured:
        parts.append("Not every node has been measured: times are assumed from their cores.")
    return "\n\n".join(parts)


def _figures(predicted: Predicted, measured: Measured | None) -> Sequence[tuple[str, str, str]]:
    rate, first = ("-", "-") if measured is None else (f"{measured.tokens_per_s:.1f}", f"{measured.first_token_ms:.0f}")
    return [
        ("tokens/s", f"{predicted.verified_tokens_per_s:.1f}", rate),
        ("first token, ms", f"{predicted.first_token_ms:.0f}", first),
    ]


def _seat(seat: PlannedSeat) -> tuple[str, ...]:
    return (
        str(seat.lane),
        str(seat.stage),
        f"{seat.start}-{seat.end}",
        seat.node_id,
        f"{seat.decode_ms:.1f} ms",
        f"{seat.prefill_ms_per_token:.2f} ms/token",
    )


def _memory(node: NodeMemory) -> tuple[str, ...]:
    return (
        node.node_id,
        *(f"{size / MEBIBYTE:.0f} MiB" for size in (node.used_bytes, node.reserved_bytes, node.memory_bytes)),
    )


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


@dataclass(frozen=True, slots=True)
class _Timed:
    """Seconds of one clock."""

    asked_s: float
    first_s: float
    """When the first tokens came."""
    num_first: int
    end_s: float


def _measured(gateway: Gateway, model: str, arguments: argparse.Namespace) -> Measured:
    """Of as many answers as were asked about, all at once. Raises what one of them failed with."""
    body: dict[str, object] = {
        "kind": "completion",
        "model": model,
        "input": {
            "prompt": [PROMPT_ID] * arguments.prompt_tokens,
            "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True,
        },
    }
    if arguments.verification is not None:
        body["verification"] = arguments.verification
    with ThreadPoolExecutor(arguments.sequences) as threads:
        answers = list(threads.map(lambda _: _timed(gateway, body), range(arguments.sequences)))
    num_tokens = sum(ANSWER_TOKENS - answer.num_first for answer in answers)
    took_s = max(answer.end_s for answer in answers) - min(answer.first_s for answer in answers)
    return Measured(
        tokens_per_s=num_tokens / took_s,
        first_token_ms=statistics.median(answer.first_s - answer.asked_s for answer in answers) * 1000,
    )


def _timed(gateway: Gateway, body: Mapping[str, object]) -> _Timed:
    asked_s = time.perf_counter()
    first: tuple[float, int] | None = None
    for name, data in gateway.events(gateway.submit_json(body)):
        token_ids = data.get("token_ids")
        if name == "commit" and isinstance(token_ids, list) and first is None:
            first = time.perf_counter(), len(token_ids)
        if name == "end" and first is not None and data.get("status") == "completed":
            return _Timed(asked_s, *first, time.perf_counter())
    raise PeerUnavailable("an answer did not come to its end: `butterfly tasks` tells why")
