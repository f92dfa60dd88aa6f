"""What each process of a local cluster is told by its environment, over whatever config.toml says."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.cli.domain.cluster import Kind, Seat, port_of

CONTROL_SECRETS = frozenset({"REDIS_URL", "BUTTERFLY_REDIS__URL", "BUTTERFLY_SECURITY__SERVICE_TOKEN"})
"""Variables that no worker may see."""

EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104  compared with, not bound to
"""Addresses to listen on that are no addresses to call."""

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""The control services compute nothing that deserves a thread per core."""
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


@dataclass(frozen=True, slots=True)
class Layout:
    """All that the environments of one cluster depend on."""

    host: str
    """Where the processes listen."""
    reach_host: str
    """By which name they, and workers of other machines, reach one another."""
    base_port: int
    data_dir: str
    redis_url: str
    service_token: str
    join_token: str
    preload_models: tuple[str, ...]
    num_stages: int | None
    verification: str
    """Of tasks that do not say."""
    worker_memory_mb: int
    parent_pid: int
    replicas: Mapping[Kind, int] = field(default_factory=dict)

    def url(self, kind: Kind, index: int = 0) -> str:
        """Of the replica with this index."""
        return f"http://{bracketed(self.reach_host)}:{port_of(self.base_port, kind, index)}"

    def urls(self, kind: Kind) -> str:
        """Of all replicas, separated by commas."""
        return ",".join(self.url(kind, index) for index in range(self.replicas.get(kind, 1)))


def bracketed(host: str) -> str:
    """As it stands in an address with a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def environment_of(seat: Seat, layout: Layout, inherited: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of one process."""
    if seat.kind is Kind.REDIS:
        return {name: value for name, value in inherited.items() if name not in CONTROL_SECRETS}
    variables = {f"BUTTERFLY_{name}": value for name, value in _shared_keys(layout).items()}
    if seat.kind is Kind.WORKER:
        kept = {name: value for name, value in inherited.items() if name not in CONTROL_SECRETS}
        return kept | variables | _worker_variables(seat, layout, inherited)
    own = _BIND_VARIABLES[seat.kind]
    control = {
        own: f"{bracketed(layout.host)}:{seat.port}",
        "BUTTERFLY_REDIS__URL": layout.redis_url,
        "BUTTERFLY_SECURITY__SERVICE_TOKEN": layout.service_token,
        "BUTTERFLY_SECURITY__JOIN_TOKEN": layout.join_token,
        "BUTTERFLY_PARTITION__MODELS_DIR": f"{layout.data_dir}/models",
        "BUTTERFLY_COORDINATION__DATA_DIR": f"{layout.data_dir}/coordinator",
        "BUTTERFLY_COORDINATION__DEFAULT_VERIFICATION": layout.verification,
        "BUTTERFLY_SCHEDULING__PRELOAD_MODELS": ",".join(layout.preload_models),
    }
    if seat.kind is Kind.COORDINATOR and layout.replicas.get(Kind.COORDINATOR, 1) > 1:
        control["BUTTERFLY_COORDINATION__ADVERTISE_URL"] = layout.url(Kind.COORDINATOR, seat.index)
    if layout.num_stages is not None:
        control["BUTTERFLY_PARTITION__NUM_STAGES"] = str(layout.num_stages)
    return {**inherited, **variables, **control, **_ONE_THREAD}


def join_environment(
    *,
    coordinator_url: str,
    join_token: str,
    listen: str,
    advertise: str | None,
    data_dir: str,
    memory_mb: int | None,
    inherited: Mapping[str, str],
) -> dict[str, str]:
    """What a worker needs, beside what it inherits, to join a cluster of another machine. `coordinator_url`: of
    several, separated by commas, any one."""
    variables = {
        "BUTTERFLY_NETWORK__PEER_ADDRESSES": coordinator_url,
        "BUTTERFLY_SERVICES__COORDINATOR_URL": coordinator_url,
        "BUTTERFLY_NETWORK__LISTEN_ADDRESS": listen,
        "BUTTERFLY_SECURITY__JOIN_TOKEN": join_token,
        "BUTTERFLY_WORKER__DATA_DIR": data_dir,
        "GLIBC_TUNABLES": _with_huge_pages(inherited.get("GLIBC_TUNABLES", "")),
    }
    if advertise is not None:
        variables["BUTTERFLY_NETWORK__ADVERTISE_ADDRESS"] = advertise
    if memory_mb is not None:
        variables["BUTTERFLY_WORKER__MEMORY_MB"] = str(memory_mb)
    return variables


def _with_huge_pages(tunables: str) -> str:
    """For weights and KV cache, which are streamed at every step. Read by the C library at exec, so it is no setting of
    the worker's own. What the operator tuned stays."""
    if _HUGE_PAGES.partition("=")[0] in tunables:
        return tunables
    return f"{tunables}:{_HUGE_PAGES}" if tunables else _HUGE_PAGES


_BIND_VARIABLES = {
    Kind.API: "BUTTERFLY_API__BIND_ADDRESS",
    Kind.SCHEDULER: "BUTTERFLY_SCHEDULING__BIND_ADDRESS",
    Kind.PARTITIONER: "BUTTERFLY_PARTITION__BIND_ADDRESS",
    Kind.COORDINATOR: "BUTTERFLY_COORDINATION__BIND_ADDRESS",
    Kind.METRICS: "BUTTERFLY_METRICS__BIND_ADDRESS",
}


def _shared_keys(layout: Layout) -> dict[str, str]:
    return {
        "PARENT_PID": str(layout.parent_pid),
        "SERVICES__SCHEDULER_URL": layout.urls(Kind.SCHEDULER),
        "SERVICES__PARTITIONER_URL": layout.urls(Kind.PARTITIONER),
        "SERVICES__COORDINATOR_URL": layout.urls(Kind.COORDINATOR),
        "SERVICES__METRICS_URL": layout.url(Kind.METRICS),
    }


def _worker_variables(seat: Seat, layout: Layout, inherited: Mapping[str, str]) -> dict[str, str]:
    return join_environment(
        coordinator_url=layout.urls(Kind.COORDINATOR),
        join_token=layout.join_token,
        listen=f"{bracketed(layout.host)}:{seat.port}",
        advertise=f"{bracketed(layout.reach_host)}:{seat.port}",
        data_dir=f"{layout.data_dir}/workers/{seat.index}",
        memory_mb=layout.worker_memory_mb,
        inherited=inherited,
    )
