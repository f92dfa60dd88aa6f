"""What happens in the history of a seed: tasks, blows that hosts and links take, and how bad the network is."""

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from shared.domain.ids import TaskId
from shared.domain.task import InferenceTask, SamplerParams, StopRules, TaskKind, Verification
from tests.fakes.engine import N_VOCAB
from tests.simulation.world.world import MODEL_ID

STORE = "store"
"""A host of its own for blows: where the registry is."""
END_IDS = (2,)
MAX_TOKENS = 14
FIRST_TASK_S = 0.5
LAST_TASK_S = 2.5
LAST_BLOW_S = 5.0
LENGTHS_S = (0.2, 1.0, 4.0, 6.0)
"""At most: shorter than all leases and limits, and longer than those of nodes (2 s) and of sessions (3 s)."""
STEP_S = 0.002
"""What a call of an engine takes."""
LATENCIES_S = ((0.001, 0.01), (0.02, 0.2))
"""Of one way: as in one room, or so long that an answer takes as long as a lease."""
DUEL_SHARE = 0.4
"""Of the seeds with two coordinators."""
DUEL_AFTER_S = (1.0, 4.0)
"""The task was wanted: about when its answer begins."""
DUEL_S = (2.8, 4.4)
"""About as long as the lease of a session: who comes back must find the other one just beginning."""
LOSS_SHARE = 0.3
"""Of the seeds in which something is broken: a worker of a long verified answer is lost."""
LOSS_AFTER_S = (3.0, 9.0)
"""The task was wanted: some windows are committed, others are not."""
QUIET_SHARE = 0.05
"""Of all seeds: nothing is broken, so nothing may be done twice."""
LONG_DEADLINE_S = 600.0


class BlowKind(StrEnum):
    KILL = "kill"
    """Gone at once, as by SIGKILL, and started again afterwards."""
    STOP = "stop"
    """Told to stop, as by SIGTERM, and started again afterwards."""
    HANG = "hang"
    """Stands still, as by SIGSTOP, and goes on afterwards as if nothing had been."""
    CUT = "cut"
    """Neither hears the others nor is heard by them."""
    DEAF = "deaf"
    """Is heard by some, and hears nothing of them."""


@dataclass(frozen=True, slots=True)
class Blow:
    kind: BlowKind
    at_s: float
    for_s: float
    hosts: tuple[str, ...]
    """Who takes it."""
    others: tuple[str, ...] = ()
    """From whom they are cut off."""

    @property
    def until_s(self) -> float:
        return self.at_s + self.for_s


@dataclass(frozen=True, slots=True)
class Noise:
    """Until the network heals. Shares of all requests, or of all calls to the store."""

    lost: float
    """Never arrive."""
    unanswered: float
    """Are served, and their answers are lost."""
    late: float
    """Take so long that others overtake them."""
    store_lost: float
    store_unanswered: float
    store_twice: float
    """Arrive a second time: the client library tries again what broke."""


QUIET = Noise(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Errand:
    """What a client wants."""

    at_s: float
    task: InferenceTask
    cancel_after_s: float | None

    @property
    def has_long(self) -> bool:
        """Its deadline cannot pass before all is over."""
        return self.task.deadline_s >= LONG_DEADLINE_S


@dataclass(frozen=True, slots=True)
class Story:
    seed: int
    num_workers: int
    num_coordinators: int
    num_schedulers: int
    num_stages: int
    latency_s: tuple[float, float]
    """Of one way between two hosts: from, to."""
    skew_s: float
    """At most; of every host's wall clock."""
    tail_audit_fraction: float
    noise: Noise
    blows: tuple[Blow, ...]
    errands: tuple[Errand, ...]

    @property
    def is_quiet(self) -> bool:
        return not self.blows and self.noise == QUIET

    @property
    def heals_at_s(self) -> float:
        return max([LAST_TASK_S, *(blow.until_s for blow in self.blows)])

    @property
    def hosts(self) -> tuple[str, ...]:
        return hosts_of(self.num_workers, self.num_coordinators, self.num_schedulers)


def hosts_of(workers: int, coordinators: int, schedulers: int) -> tuple[str, ...]:
    return (
        "partitioner",
        *(f"coordinator-{index}" for index in range(coordinators)),
        *(f"scheduler-{index}" for index in range(schedulers)),
        *(f"worker-{index}" for index in range(workers)),
    )


def draw_story(seed: int) -> Story:
    rng = Random(seed)
    workers, coordinators, schedulers = rng.randint(3, 5), rng.choice((1, 2, 2)), rng.choice((1, 1, 2))
    hosts = hosts_of(workers, coordinators, schedulers)
    errands = [_errand(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    latency_s = rng.choice(LATENCIES_S)
    moments = [errand.at_s for errand in errands]
    is_quiet = rng.random() < QUIET_SHARE
    blows = [] if is_quiet else [_blow(rng, hosts, moments) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4)))]
    has_duel = not is_quiet and coordinators > 1 and rng.random() < DUEL_SHARE
    if has_duel:
        # Over a long answer whose tokens are written one by one.
        errands[0] = replace(errands[0], task=_long_and_unverified(errands[0].task))
        latency_s = LATENCIES_S[-1]
        blows.append(_duel(rng, errands[0].at_s))
    story = Story(
        seed=seed,
        num_workers=workers,
        num_coordinators=coordinators,
        num_schedulers=schedulers,
        num_stages=rng.choice((1, 2, 2, 3)),
        latency_s=latency_s,
        skew_s=rng.choice((0.0, 0.0, 0.05)),
        tail_audit_fraction=rng.choice((0.0, 0.0, 0.5)),
        noise=QUIET if is_quiet else _noise(rng),
        blows=tuple(sorted(blows, key=lambda blow: blow.at_s)),
        errands=tuple(sorted(errands, key=lambda errand: errand.at_s)),
    )
    return _with_loss(story, rng) if not is_quiet and not has_duel and rng.random() < LOSS_SHARE else story


def _with_loss(story: Story, rng: Random) -> Story:
    """A worker is lost when there are rows that another one may go on from."""
    first, *others = story.errands
    task = replace(first.task, verification=Verification.AUDIT, max_byzantine=1, max_tokens=MAX_TOKENS)
    kind = rng.choice((BlowKind.KILL, BlowKind.HANG, BlowKind.CUT))
    struck = f"worker-{rng.randrange(story.num_workers)}"
    rest = tuple(name for name in story.hosts if name != struck) if kind is BlowKind.CUT else ()
    blow = Blow(kind, first.at_s + rng.uniform(*LOSS_AFTER_S), rng.uniform(*LENGTHS_S[-2:]), (struck,), rest)
    return replace(
        story,
        latency_s=LATENCIES_S[-1],
        blows=tuple(sorted((*story.blows, blow), key=lambda each: each.at_s)),
        errands=(replace(first, task=task), *others),
    )


def _noise(rng: Random) -> Noise:
    return Noise(
        lost=rng.choice((0.0, 0.01, 0.05)),
        unanswered=rng.choice((0.0, 0.01, 0.05)),
        late=rng.choice((0.0, 0.05, 0.2)),
        store_lost=rng.choice((0.0, 0.0, 0.03)),
        store_unanswered=rng.choice((0.0, 0.0, 0.03)),
        store_twice=rng.choice((0.0, 0.05)),
    )


def _errand(rng: Random) -> Errand:
    verification = rng.choice((Verification.NONE, Verification.AUDIT, Verification.AUDIT, Verification.QUORUM))
    is_verified = verification is not Verification.NONE
    task = InferenceTask(
        task_id=TaskId(f"task_{rng.getrandbits(128):032x}"),
        kind=TaskKind.COMPLETION,
        model_id=MODEL_ID,
        prompt_ids=tuple(rng.randrange(3, N_VOCAB) for _ in range(rng.randint(1, 5))),
        max_tokens=rng.randint(1, MAX_TOKENS),
        sampler=SamplerParams(temperature=0.0) if rng.random() < 0.5 else SamplerParams(seed=rng.getrandbits(32)),
        stop=StopRules(end_ids=END_IDS),
        verification=verification,
        max_byzantine=1 if is_verified else 0,
        deadline_s=rng.uniform(1.0, 5.0) if rng.random() < 0.1 else LONG_DEADLINE_S,
    )
    return Errand(
        at_s=rng.uniform(FIRST_TASK_S, LAST_TASK_S),
        task=task,
        cancel_after_s=rng.uniform(0.0, 1.0) if rng.random() < 0.1 else None,
    )


def _long_and_unverified(task: InferenceTask) -> InferenceTask:
    return replace(task, verification=Verification.NONE, max_byzantine=0, max_tokens=MAX_TOKENS)


def _blow(rng: Random, hosts: tuple[str, ...], moments: list[float]) -> Blow:
    """Mostly while an answer is being made."""
    at_s = rng.uniform(0.0, LAST_BLOW_S) if rng.random() < 0.3 else rng.choice(moments) + rng.uniform(0.0, 2.0)
    for_s = rng.choice(LENGTHS_S) * rng.uniform(0.5, 1.0)
    kind = rng.choice(list(BlowKind))
    struck = rng.choice(_of_one_kind(rng, hosts))
    if kind in {BlowKind.KILL, BlowKind.STOP, BlowKind.HANG}:
        return Blow(kind, at_s, for_s, (struck,))
    if struck.startswith(("coordinator", "scheduler")) and rng.random() < 0.5:
        return Blow(kind, at_s, for_s, (struck,), (STORE,))
    side = tuple(sorted({struck, *rng.sample(hosts, rng.choice((0, 0, len(hosts) // 2)))}))
    rest = tuple(name for name in hosts if name not in side)
    return Blow(kind, at_s, for_s, side, tuple(sorted(rng.sample(rest, rng.randint(1, len(rest))))))


def _duel(rng: Random, moment_s: float) -> Blow:
    """A coordinator loses its sessions to another one, and does not know."""
    at_s, for_s = moment_s + rng.uniform(*DUEL_AFTER_S), rng.uniform(*DUEL_S)
    coordinator = f"coordinator-{rng.randrange(2)}"
    if rng.random() < 0.5:
        return Blow(BlowKind.HANG, at_s, for_s, (coordinator,))
    return Blow(BlowKind.CUT, at_s, for_s, (coordinator,), (STORE,))


def _of_one_kind(rng: Random, hosts: tuple[str, ...]) -> list[str]:
    kind = rng.choices(("worker", "coordinator", "scheduler", "partitioner"), (4, 4, 2, 1))[0]
    return [name for name in hosts if name.startswith(kind)]
