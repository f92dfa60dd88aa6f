"""`butterfly plan`: who would hold which layers, what to expect of it, and what it is."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass

from services.cli.clients.gateway import Gateway, NodeMemory, PlannedSeat, Predicted, Preview
from services.cli.commands.arguments import Invocation, Subcommands, add_api, api_url, positive
from services.cli.domain.progress import Progress, all_s, median_first_token_s, steady_tokens_per_s
from services.cli.domain.table import table
from shared.domain.errors import InvalidInput, ModelNotFound, PeerUnavailable

MODES = ("none", "audit", "quorum")
OBJECTIVES = ("latency", "throughput")
ANSWER_TOKENS = 128
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
    parser.add_argument("--answer-tokens", type=positive, default=ANSWER_TOKENS, metavar="N", help="(%(default)s)")
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
        "context_tokens": arguments.prompt_tokens + arguments.answer_tokens,
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

    tokens_per_s: float | None
    """Of all together; None: they were too short to say."""
    first_token_ms: float
    """Median."""
    answers_ms: float
    """Until the last one ended."""

    @classmethod
    def of(cls, answers: Sequence[Progress]) -> "Measured":
        return cls(steady_tokens_per_s(answers), median_first_token_s(answers) * 1000, all_s(answers) * 1000)


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
    elif not preview.predicted.is_timed:
        parts.append("No stage of this model has been timed yet: times are by the pace of the nodes.")
    return "\n\n".join(parts)


def _figures(predicted: Predicted, measured: Measured | None) -> Sequence[tuple[str, str, str]]:
    rate, first_ms, answers_ms = astuple(measured) if measured is not None else (None, None, None)
    return [
        ("tokens/s", f"{predicted.verified_tokens_per_s:.1f}", _told(rate, ".1f")),
        ("first token, ms", f"{predicted.first_token_ms:.0f}", _told(first_ms, ".0f")),
        ("all answers, ms", f"{predicted.answers_ms:.0f}", _told(answers_ms, ".0f")),
    ]


def _told(measured: float | None, form: str) -> str:
    return "-" if measured is None else format(measured, form)


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


def _measured(gateway: Gateway, model: str, arguments: argparse.Namespace) -> Measured:
    """Of as many answers as were asked about, all at once. Raises what one of them failed with."""
    body: dict[str, object] = {
        "kind": "completion",
        "model": model,
        "input": {
            "prompt": [PROMPT_ID] * arguments.prompt_tokens,
            "max_tokens": arguments.answer_tokens,
            "ignore_eos": True,
        },
    }
    if arguments.verification is not None:
        body["verification"] = arguments.verification
    return Measured.of(timed_answers(gateway, body, arguments.sequences))


def timed_answers(gateway: Gateway, body: Mapping[str, object], count: int) -> list[Progress]:
    """So many of these tasks, all at once. Raises what one of them failed with."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: _timed(gateway, body), range(count)))


def _timed(gateway: Gateway, body: Mapping[str, object]) -> Progress:
    asked_s, tokens = time.perf_counter(), list[tuple[float, int]]()
    for name, data in gateway.events(gateway.submit_json(body)):
        token_ids = data.get("token_ids")
        if name == "commit" and isinstance(token_ids, list):
            before = tokens[-1][1] if tokens else 0
            tokens.append((time.perf_counter(), before + len(token_ids)))
        if name == "end" and tokens and data.get("status") == "completed":
            return Progress(asked_s, tuple(tokens), time.perf_counter())
    raise PeerUnavailable("an answer did not come to its end: `butterfly tasks` tells why")
