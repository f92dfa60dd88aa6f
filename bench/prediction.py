"""Whether predictions hold: `make bench-prediction`.

Real clusters of several shapes are asked what they would do (`POST /v1/plans/preview`), and then do it: so many answers
at once, unverified and audited. Predicted and measured stand side by side; the error of a set-up is that of its median
round, and the figure to keep low is the median error of the rate over all set-ups. On uneven clusters workers are
limited to parts of a core (`tests.e2e.cpu_shares`; needs root and control groups).

A second cluster like the last one goes by the strategy `uniform`. Both answer the same in turns: what `load_balanced`
was predicted to gain on uneven machines stands beside what it gains.

The machine must have nothing else to do: what other processes take meanwhile is told with every round, and a round in
which it was much is played again. Stores everything under bench/results/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter

from bench.cluster import Cluster, running_cluster
from bench.measure import commit, machine
from bench.verification import cpu_s
from bench.workers import wait_prepared, workers_of
from services.cli.clients.gateway import Gateway
from services.cli.commands.plan import Measured, timed_answers
from services.cli.stores.data_dir import DataDir
from shared.contracts.coordinator import NodeList, NodeView
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import Lane, LayerRange, NodeCapability, Partition
from shared.resilience.context import SERVICE_TOKEN_HEADER
from tests.e2e.cpu_shares import limited

ROOT = Path(__file__).parent.parent
STAGES = 3
PROMPT_TOKENS = 128
ANSWER_TOKENS = 96
MODES = ("none", "audit")
SEQUENCES = (1, 4, 16)
MEMORY_MB = 1_024
MEASURED_LIMIT_S = 240.0
MOST_FOREIGN = 0.1
"""Share of the machine that others may take during a round."""
MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a cluster."""

    name: str
    shares: tuple[float, ...]
    """Cores of each worker; 0: no limit."""
    are_apart: bool = False
    """Whether each worker says that it has a machine of its own."""
    sequences: tuple[int, ...] = SEQUENCES


SHAPES = (
    Shape("3 workers", (0.0, 0.0, 0.0)),
    Shape("4 workers", (0.0, 0.0, 0.0, 0.0)),
    Shape("3 uneven workers", (0.6, 0.35, 0.2), sequences=(1, 4)),
    Shape("3 uneven machines", (0.6, 0.35, 0.2), are_apart=True, sequences=(1, 4)),
)
COMPARED = SHAPES[-1]
COMPARISON = "strategies"
BASELINE, STRATEGY = "uniform", "load_balanced"
PORTS_OF_A_CLUSTER = 20


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the prediction was made from, so that it can be made again."""

    nodes: tuple[NodeCapability, ...]
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class Round:
    shape: str
    strategy: str
    mode: str
    sequences: int
    situation: Situation
    predicted: Measured
    measured: Measured
    foreign: float
    """Share of the machine that other processes took meanwhile."""

    def error(self, figure: str) -> float:
        """Of the prediction, by what was measured."""
        measured = getattr(self.measured, figure)
        return float("nan") if measured is None else getattr(self.predicted, figure) / measured - 1


FIGURES = ("tokens_per_s", "first_token_ms", "answers_ms")


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much faster `STRATEGY` answers than `BASELINE`: its rate by the other's, median of the rounds."""

    mode: str
    sequences: int
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True)
class Result:
    """Of a run, as it is stored."""

    commit: str
    machine: Mapping[str, object]
    model: ModelInfo
    prompt_tokens: int
    answer_tokens: int
    median_error: Mapping[str, float]
    rounds: tuple[Round, ...]
    gains: tuple[Gain, ...]
    compared: tuple[Round, ...]
    """Those that the gains come from."""


class Control:
    """What only operators see of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        token = DataDir(cluster.data_dir).secrets().service_token
        self._headers = {SERVICE_TOKEN_HEADER: token}
        self._cluster = cluster

    def nodes(self) -> tuple[NodeCapability, ...]:
        return tuple(node.capability for node in self._views())

    def wait_timed(self) -> None:
        """Every stage that a node holds has been timed there."""
        limit = time.monotonic() + MEASURED_LIMIT_S
        while not all(map(_is_timed, self._views())):
            if time.monotonic() > limit:
                raise RuntimeError("the stages were not timed: is the machine busy?")
            time.sleep(1.0)

    def model(self) -> ModelInfo:
        told = self._get(f"{self._cluster.partitioner_url}/models/{self._cluster.model}")
        return TypeAdapter(ModelInfo).validate_json(told)

    def _views(self) -> tuple[NodeView, ...]:
        told = self._get(f"{self._cluster.coordinator_url}/nodes?with_stage_times=true")
        return NodeList.model_validate_json(told).nodes

    def _get(self, url: str) -> bytes:
        return httpx.get(url, headers=self._headers, trust_env=False).raise_for_status().content


@dataclass(frozen=True, slots=True)
class Subject:
    """A cluster that is measured."""

    gateway: Gateway
    model: str
    control: Control
    strategy: str
    pids: tuple[int, ...]


class Watch:
    """How much of the machine other processes take."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = [*pids, os.getpid()]
        self._before = self._read()

    def share(self) -> float:
        """Since the last call."""
        before, self._before = self._before, self._read()
        wall_s, busy_s, own_s = (now - then for now, then in zip(self._before, before, strict=True))
        return max(0.0, busy_s - own_s) / wall_s / (os.cpu_count() or 1)

    def _read(self) -> tuple[float, float, float]:
        """Monotonic seconds, processor seconds of all and of ours. Linux only."""
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy_s = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy_s, cpu_s(self._pids)


@contextmanager
def cluster_of(
    shape: Shape, model: Path, base_port: int, data_dir: Path, strategy: str = STRATEGY
) -> Iterator[Subject]:
    """Whose workers have been measured."""
    with ExitStack() as stack:
        cluster = stack.enter_context(
            running_cluster(
                workers=0,
                stages=STAGES,
                base_port=base_port,
                data_dir=data_dir,
                model=model,
                speeds="measured",
                strategy=strategy,
            )
        )
        module = "bench.lone_worker" if shape.are_apart else "services.worker"
        workers = stack.enter_context(workers_of(cluster, len(shape.shares), memory_mb=MEMORY_MB, module=module))
        limits = [(pid, share) for pid, share in zip(workers.pids, shape.shares, strict=True) if share]
        stack.enter_context(limited(limits) if limits else nullcontext())
        gateway = Gateway(cluster.api_url)
        _until_measured(gateway, cluster, len(shape.shares))
        wait_prepared(cluster, workers=len(shape.shares), stages=STAGES)
        yield Subject(gateway, cluster.model, Control(cluster), strategy, (*_pids_of(cluster), *workers.pids))


def play(subject: Subject, watch: Watch, shape: Shape, mode: str, sequences: int) -> Round:
    """Once more while others disturbed it."""
    tries = 0
    while True:
        tries += 1
        predicted, lanes = _predicted(subject, mode, sequences)
        situation = Situation(subject.control.nodes(), lanes)
        watch.share()
        body = {
            "kind": "completion",
            "model": subject.model,
            "verification": mode,
            "input": {"prompt": [300] * PROMPT_TOKENS, "max_tokens": ANSWER_TOKENS, "ignore_eos": True},
        }
        measured = Measured.of(timed_answers(subject.gateway, body, sequences))
        found = Round(shape.name, subject.strategy, mode, sequences, situation, predicted, measured, watch.share())
        print(_line(found), flush=True)
        if found.foreign <= MOST_FOREIGN or tries == MOST_TRIES:
            return found


def rounds_of(shape: Shape, subjects: Sequence[Subject], count: int, sequences: Sequence[int]) -> list[Round]:
    """Every subject in turn. Round 0 warms up: auditors hold their stages then, and what calls take by now is known."""
    watch, rounds = Watch([pid for subject in subjects for pid in subject.pids]), list[Round]()
    for number in range(count + 1):
        for at_once in sorted(set(shape.sequences) & set(sequences)):
            for mode in MODES:
                if number or at_once == 1:
                    found = [play(subject, watch, shape, mode, at_once) for subject in subjects]
                    rounds += found if number else []
        if not number:
            for subject in subjects:
                subject.control.wait_timed()
    return rounds


def gains_of(rounds: Sequence[Round]) -> tuple[Gain, ...]:
    """`rounds` of the two strategies in turns."""
    gains: list[Gain] = []
    for mode, sequences in dict.fromkeys((each.mode, each.sequences) for each in rounds):
        of_setup = [each for each in rounds if (each.mode, each.sequences) == (mode, sequences)]
        pairs = list(
            zip(*([each for each in of_setup if each.strategy == name] for name in (STRATEGY, BASELINE)), strict=True)
        )
        predicted, measured = (
            statistics.median(_rate(getattr(own, side)) / _rate(getattr(base, side)) - 1 for own, base in pairs)
            for side in ("predicted", "measured")
        )
        gains.append(Gain(mode, sequences, predicted, measured))
    return tuple(gains)


def table_of_gains(gains: Sequence[Gain]) -> str:
    lines = [
        f"| {COMPARED.name} | answers | {STRATEGY} beats {BASELINE} by, predicted | measured | error |",
        "| --- |" + " --- |" * 4,
    ]
    lines += [
        f"| {gain.mode} | {gain.sequences} | {gain.predicted:+.0%} | {gain.measured:+.0%}"
        f" | {(1 + gain.predicted) / (1 + gain.measured) - 1:+.0%} |"
        for gain in gains
    ]
    return "\n".join(lines)


def _rate(figures: Measured) -> float:
    """NaN: the answers were too short to say."""
    return float("nan") if figures.tokens_per_s is None else figures.tokens_per_s


def table(rounds: Sequence[Round]) -> str:
    lines = [
        "| cluster | mode | answers | tok/s predicted | measured | error | first token | all answers |",
        "| --- |" + " --- |" * 7,
    ]
    for setup in dict.fromkeys((each.shape, each.mode, each.sequences) for each in rounds):
        of_setup = [each for each in rounds if (each.shape, each.mode, each.sequences) == setup]
        median = {figure: median_error(of_setup, figure) for figure in FIGURES}
        predicted, measured = (
            statistics.median(getattr(each, side).tokens_per_s or 0.0 for each in of_setup)
            for side in ("predicted", "measured")
        )
        shape, mode, sequences = setup
        lines.append(
            f"| {shape} | {mode} | {sequences} | {predicted:.1f} | {measured:.1f} | {median['tokens_per_s']:+.0%}"
            f" | {median['first_token_ms']:+.0%} | {median['answers_ms']:+.0%} |"
        )
    return "\n".join(lines)


def median_error(rounds: Sequence[Round], figure: str) -> float:
    """With its sign, of the rounds of one set-up."""
    return statistics.median(each.error(figure) for each in rounds)


def over_setups(rounds: Sequence[Round]) -> Mapping[str, float]:
    """Median over the set-ups of how far the median round was off; nothing without any."""
    setups = dict.fromkeys((each.shape, each.mode, each.sequences) for each in rounds)
    return {
        figure: statistics.median(
            abs(median_error([each for each in rounds if (each.shape, each.mode, each.sequences) == setup], figure))
            for setup in setups
        )
        for figure in FIGURES
        if setups
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / ".butterfly/models/smollm2-135m.gguf", help="a GGUF file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base-port", type=int, default=28_180)
    names = [*(shape.name for shape in SHAPES), COMPARISON]
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="clusters; default: all")
    parser.add_argument("--sequences", nargs="*", type=int, default=SEQUENCES, help="answers at once; default: 1 4 16")
    options = parser.parse_args()
    before, rounds, compared = machine(), list[Round](), list[Round]()
    model: ModelInfo | None = None
    for shape in SHAPES:
        if shape.name in options.only:
            with _clusters([STRATEGY], shape, options.model, options.base_port) as subjects:
                model = subjects[0].control.model()
                rounds += rounds_of(shape, subjects, options.rounds, options.sequences)
    if COMPARISON in options.only:
        with _clusters([BASELINE, STRATEGY], COMPARED, options.model, options.base_port) as subjects:
            model = subjects[0].control.model()
            compared += rounds_of(COMPARED, subjects, options.rounds, options.sequences)
    if model is None:
        raise SystemExit("none of the clusters was wanted")
    errors, gains = over_setups(rounds), gains_of(compared)
    result = Result(
        commit(), before, model, PROMPT_TOKENS, ANSWER_TOKENS, errors, tuple(rounds), gains, tuple(compared)
    )
    path = ROOT / "bench" / "results" / time.strftime("prediction-%Y%m%d-%H%M%S.json")
    path.write_bytes(TypeAdapter(Result).dump_json(result) + b"\n")
    if rounds:
        print(table(rounds))
        print("median error over the set-ups:", {name: f"{error:.0%}" for name, error in errors.items()})
    if gains:
        print(table_of_gains(gains))
    print("stored:", path.relative_to(ROOT))


@contextmanager
def _clusters(strategies: Sequence[str], shape: Shape, model: Path, base_port: int) -> Iterator[Sequence[Subject]]:
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in strategies]
        yield [
            stack.enter_context(cluster_of(shape, model, base_port + index * PORTS_OF_A_CLUSTER, folder, strategy))
            for index, (strategy, folder) in enumerate(zip(strategies, folders, strict=True))
        ]


def _predicted(subject: Subject, mode: str, sequences: int) -> tuple[Measured, tuple[Lane, ...]]:
    told: Any = subject.gateway.preview_json(_wish(subject.model, mode, sequences))
    predicted = subject.gateway.parsed_preview(told).predicted
    (pipeline, *_) = told["pipelines"]
    lanes = tuple(
        Lane(
            index,
            tuple(
                Partition(stage, NodeId(seat["node_id"]), LayerRange(seat["start"], seat["end"]))
                for stage, seat in enumerate(lane)
            ),
        )
        for index, lane in enumerate(pipeline["lanes"])
    )
    return Measured(predicted.verified_tokens_per_s, predicted.first_token_ms, predicted.answers_ms), lanes


def _wish(model: str, mode: str, sequences: int) -> Mapping[str, object]:
    return {
        "model": model,
        "verification": mode,
        "sequences": sequences,
        "prompt_tokens": PROMPT_TOKENS,
        "context_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
    }


def _until_measured(gateway: Gateway, cluster: Cluster, workers: int) -> None:
    limit = time.monotonic() + MEASURED_LIMIT_S
    while not _is_measured(gateway, cluster.model, workers):
        if time.monotonic() > limit:
            raise RuntimeError("the workers were not measured: is the machine busy?")
        time.sleep(1.0)


def _is_timed(node: NodeView) -> bool:
    timed = () if node.capability.measured is None else node.capability.measured.stages
    return {(stage.start, stage.end) for stage in node.stages} <= {(stage.start, stage.end) for stage in timed}


def _is_measured(gateway: Gateway, model: str, workers: int) -> bool:
    if sum(node.state == "ready" for node in gateway.nodes()) < workers:
        return False
    told = [gateway.parsed_preview(gateway.preview_json(_wish(model, mode, 1))).predicted for mode in MODES]
    return all(each.is_measured and each.is_timed for each in told)


def _pids_of(cluster: Cluster) -> list[int]:
    command = [sys.executable, "-m", "services.cli", "status", "--json", "--data-dir", str(cluster.data_dir)]
    status = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [process["pid"] for process in status["processes"]]


def _line(found: Round) -> str:
    def figures(each: Measured) -> str:
        return (
            f"{each.tokens_per_s or 0:6.1f} tok/s, first {each.first_token_ms:6.0f} ms, all {each.answers_ms:6.0f} ms"
        )

    errors = " ".join(f"{found.error(figure):+.0%}" for figure in FIGURES)
    return (
        f"{found.shape}, {found.strategy}, {found.mode}, {found.sequences}: predicted {figures(found.predicted)};"
        f" measured {figures(found.measured)}; {errors}; others took {found.foreign:.0%}"
    )


if __name__ == "__main__":
    main()
