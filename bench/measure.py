"""Interleaved measuring: every subject once per round, so that a busy moment of the machine hits all of them alike."""

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Load:
    """What every subject is asked to do."""

    long_prompt: list[int]
    short_prompt: list[int]
    num_tokens: int
    """Tokens decoded after the first, per sequence."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one subject reached in one round with so many sequences at once."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    subject: str
    sequences: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_ratio: float
    """Median over the rounds of this subject's rate by the baseline's in the same round."""
    decode_ratio: float
    decode_ratio_min: float
    decode_ratio_max: float


Measure = Callable[[int], Rates]


def interleave(subjects: Sequence[tuple[str, Measure]], sequences: Sequence[int], rounds: int) -> list[Summary]:
    """Run `rounds` rounds after one that is thrown away. The first subject is the baseline."""
    results: dict[tuple[str, int], list[Rates]] = {}
    for number in range(rounds + 1):
        for count in sequences:
            for name, measure in subjects:
                rates = measure(count)
                if number:
                    results.setdefault((name, count), []).append(rates)
                    print(
                        f"round {number}  {name:<28} {count:>2} seq  prefill {rates.prefill_tokens_per_s:7.1f}"
                        f"  decode {rates.decode_tokens_per_s:7.1f} tok/s",
                        flush=True,
                    )
    baseline = subjects[0][0]
    return [
        _summary(name, count, results[name, count], results[baseline, count])
        for count in sequences
        for name, _ in subjects
    ]


def _summary(name: str, count: int, rates: Sequence[Rates], baseline: Sequence[Rates]) -> Summary:
    pairs = list(zip(rates, baseline, strict=True))
    decode_ratios = [own.decode_tokens_per_s / base.decode_tokens_per_s for own, base in pairs]
    return Summary(
        subject=name,
        sequences=count,
        prefill_tokens_per_s=statistics.median(rate.prefill_tokens_per_s for rate in rates),
        decode_tokens_per_s=statistics.median(rate.decode_tokens_per_s for rate in rates),
        prefill_ratio=statistics.median(own.prefill_tokens_per_s / base.prefill_tokens_per_s for own, base in pairs),
        decode_ratio=statistics.median(decode_ratios),
        decode_ratio_min=min(decode_ratios),
        decode_ratio_max=max(decode_ratios),
    )


def table(summaries: Sequence[Summary]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| subject | sequences | prefill tok/s | decode tok/s | prefill ratio | decode ratio (min-max) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {s.subject} | {s.sequences} | {s.prefill_tokens_per_s:.0f} | {s.decode_tokens_per_s:.0f}"
        f" | {s.prefill_ratio:.2f} | {s.decode_ratio:.2f} ({s.decode_ratio_min:.2f}-{s.decode_ratio_max:.2f}) |"
        for s in summaries
    ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Memory:
    rss_mb: float
    private_mb: float
    """Without pages of mapped files and libraries, which processes share."""


def memory_of(pid: int) -> Memory:
    """Memory of a process. Linux only."""
    fields = {
        key: int(value.split()[0])
        for key, _, value in (
            line.partition(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        )
    }
    private_kb = fields["Private_Clean"] + fields["Private_Dirty"]
    return Memory(rss_mb=round(fields["Rss"] / 1024, 1), private_mb=round(private_kb / 1024, 1))


def machine() -> dict[str, object]:
    """What the figures depend on."""
    flags = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in flags.splitlines() if line.startswith("model name")), "")
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "avx512": "avx512f" in flags,
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def commit() -> str:
    """The commit that was measured, with `+` when the tree differs from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def as_json(summaries: Sequence[Summary]) -> list[dict[str, object]]:
    return [asdict(summary) for summary in summaries]
