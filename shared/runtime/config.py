"""config.toml: one frozen class per section, every key with a default, unknown keys refused.

The environment overrides the file: BUTTERFLY_<SECTION>__<KEY>, lists as JSON or separated by commas.
"""

import difflib
import ipaddress
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from shared.domain.errors import ButterflyError

ENV_PREFIX = "BUTTERFLY_"
CONFIG_PATH_VARIABLE = "BUTTERFLY_CONFIG"
PARENT_PID_VARIABLE = "BUTTERFLY_PARENT_PID"
REDIS_URL_VARIABLE = "REDIS_URL"
"""The customary name: used when neither file nor BUTTERFLY_REDIS__URL says anything."""
NOT_KEYS = frozenset({CONFIG_PATH_VARIABLE, PARENT_PID_VARIABLE})


class ConfigError(ButterflyError):
    """The configuration cannot be used; the message names the key and what would be right."""

    code = "config_error"


def split_address(address: str) -> tuple[str, int]:
    """host and port of `host:port` or `[ipv6]:port`; raises `ValueError` saying what would be right."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{address!r} should be host:port, such as 127.0.0.1:8080")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether `host:port` is reachable from this machine only."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(value: str) -> str:
    split_address(value)
    return value


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} should be a URL, such as http://127.0.0.1:8081")
    return value.rstrip("/")


def _one_or_several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(_address)]
Url = Annotated[str, AfterValidator(_url)]
Urls = Annotated[tuple[Url, ...], BeforeValidator(_one_or_several), Field(min_length=1)]
"""Of a service: one, or those of its replicas. Written as a text or a list."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ApiConfig(_Section):
    bind_address: Address = "127.0.0.1:8080"
    max_request_size_mb: int = Field(100, ge=1, le=10_240)
    request_timeout_secs: float = Field(30, gt=0, le=3_600)
    """A request head or body that has not arrived by then is cut off; generation is bounded by its deadline."""
    max_output_tokens: int = Field(1_024, ge=1, le=1_048_576)
    default_deadline_s: float = Field(600, gt=0, le=604_800)
    max_queued_per_key: int = Field(100, ge=1, le=1_000_000)
    cors_origins: tuple[str, ...] = ()
    allow_anonymous: bool = False
    """Serve other addresses than loopback without API keys."""


class SchedulingConfig(_Section):
    bind_address: Address = "127.0.0.1:8081"
    scheduler_type: Literal["priority", "fifo"] = "priority"
    max_queue_size: int = Field(1_000, ge=1, le=1_000_000)
    dispatch_batch_size: int = Field(10, ge=1, le=32)
    """At most 32: a claim touches a bounded number of keys."""
    preload_models: tuple[str, ...] = ()
    """Placed as soon as nodes are there, before a task asks for them."""


class PartitionConfig(_Section):
    bind_address: Address = "127.0.0.1:8082"
    default_strategy: str = Field("load_balanced", min_length=1, max_length=128)
    """Checked by the partitioner, which knows those that are installed."""
    default_objective: Literal["latency", "throughput"] = "throughput"
    cache_size: int = Field(100, ge=1, le=100_000)
    recompute_threshold: float = Field(0.1, ge=0, le=1)
    rebalance: Literal["always", "advised", "never"] = "always"
    """Whether new sessions go by the best plan for the nodes as they are, change only to one that is better by more
    than the threshold, or keep to theirs while its nodes are there."""
    rebalance_interval_s: float = Field(30, ge=0, le=86_400)
    """With `advised`: least time between two changes for the better."""
    num_stages: int | None = Field(None, ge=1, le=1_024)
    """None: as many as the strategy likes."""
    models_dir: Path = Path(".butterfly/models")


class CoordinationConfig(_Section):
    bind_address: Address = "127.0.0.1:8083"
    node_id: int = Field(0, ge=0, le=65_535)
    cluster_size: int = Field(3, ge=1, le=1_024)
    max_byzantine: int = Field(1, ge=0, le=511)
    default_verification: Literal["none", "audit", "quorum"] = "audit"
    phase_timeout_ms: int = Field(5_000, ge=10, le=600_000)
    checkpoint_interval: int = Field(10, ge=1, le=10_000)
    """Tokens between progress marks."""
    window_checkpoints: int = Field(4, ge=1, le=1_000)
    max_windows_ahead: int = Field(2, ge=1, le=1_000)
    """How far lane 0 may be ahead of the last verified window."""
    require_blind: Literal["admission", "always"] = "admission"
    """Whether a session that lost nodes goes on where an auditor could copy (verification.md C2), or waits."""
    trusted_nodes: tuple[str, ...] = ()
    """Ids of the operator's own nodes: rather than others they are asked to settle a dispute, and they are believed."""
    spread_by: str = ""
    """Label in which the nodes of a stage must differ, such as `operator`. Empty: nodes are enough."""
    tail_audit_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the finished verified answers that fresh nodes compute once more. 1: of all, and before they are
    released, where a task does not say otherwise (`hold`)."""
    tail_keep_s: float = Field(600, ge=0, le=86_400)
    """For so long after its end an answer is audited, and first, when a node that signed for it is evicted."""
    data_dir: Path = Path(".butterfly/coordinator")
    """Holds the coordinator's signing key."""
    join_urls: tuple[Url, ...] = ()
    """At which workers may join, beside `services.coordinator_url`."""
    advertise_url: Url | None = None
    """At which workers reach this very replica. None: at `services.coordinator_url`, where no other one answers."""
    speeds: Literal["measured", "declared"] = "measured"
    """Whether plans go by what nodes were found to do, or by the cores they say they have."""
    heartbeat_ms: int = Field(500, ge=10, le=60_000)
    lease_ms: int = Field(2_000, ge=50, le=600_000)


class NetworkConfig(_Section):
    backend_type: str = "http"
    listen_address: Address = "127.0.0.1:8090"
    """A worker's own address."""
    advertise_address: Address | None = None
    """What other nodes call instead of `listen_address`."""
    peer_addresses: tuple[Url, ...] = ()
    """Coordinators that a worker joins: at the first that answers it hears of the others."""
    max_connections: int = Field(100, ge=1, le=10_000)
    """Per peer."""
    send_timeout_ms: int = Field(1_000, ge=1, le=600_000)
    retry_attempts: int = Field(3, ge=1, le=10)
    retry_backoff_ms: int = Field(100, ge=0, le=60_000)


class MetricsConfig(_Section):
    bind_address: Address = "127.0.0.1:8084"
    collector_type: Literal["prometheus", "memory"] = "prometheus"
    export_interval_secs: float = Field(60, ge=0, le=86_400)
    """Between two snapshots in the log; 0: none."""
    retention_duration_secs: int = Field(3_600, ge=60, le=86_400)
    channel_capacity: int = Field(10_000, ge=1, le=1_000_000)


class RedisConfig(_Section):
    url: SecretStr | None = None
    """Holds the password if there is one. None: `butterfly up` starts an embedded server."""
    allow_weak_durability: bool = False


class ServicesConfig(_Section):
    scheduler_url: Urls = ("http://127.0.0.1:8081",)
    partitioner_url: Urls = ("http://127.0.0.1:8082",)
    coordinator_url: Urls = ("http://127.0.0.1:8083",)
    metrics_url: Url = "http://127.0.0.1:8084"


class WorkerConfig(_Section):
    slots: int = Field(16, ge=1, le=1_024)
    """Sequences that each stage holds at once."""
    context_tokens: int = Field(2_048, ge=16, le=1_048_576)
    """Rows that each slot holds."""
    memory_mb: int | None = Field(None, ge=1, le=16_777_216)
    """None: measured."""
    threads: int | None = Field(None, ge=1, le=4_096)
    data_dir: Path = Path(".butterfly/worker")
    name: str | None = Field(None, min_length=1, max_length=64)


class SecurityConfig(_Section):
    service_token: SecretStr = SecretStr("")
    """Between control services; empty: not checked, loopback only."""
    join_token: SecretStr = SecretStr("")
    """Admits a worker."""


class LoggingConfig(_Section):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Config(_Section):
    api: ApiConfig = ApiConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    partition: PartitionConfig = PartitionConfig()
    coordination: CoordinationConfig = CoordinationConfig()
    network: NetworkConfig = NetworkConfig()
    metrics: MetricsConfig = MetricsConfig()
    redis: RedisConfig = RedisConfig()
    services: ServicesConfig = ServicesConfig()
    worker: WorkerConfig = WorkerConfig()
    security: SecurityConfig = SecurityConfig()
    logging: LoggingConfig = LoggingConfig()


BIND_KEYS: Mapping[str, str] = {
    "api": "api.bind_address",
    "scheduler": "scheduling.bind_address",
    "partitioner": "partition.bind_address",
    "coordinator": "coordination.bind_address",
    "metrics": "metrics.bind_address",
    "worker": "network.listen_address",
}
"""Which key says where a service listens."""

Raw = dict[str, dict[str, object]]


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration of `path` (None: of the file named by BUTTERFLY_CONFIG, if any) under the environment.

    Raises `ConfigError` for a file that cannot be read, an unknown section or key, and a bad value.
    """
    if path is None and environ.get(CONFIG_PATH_VARIABLE):
        path = Path(environ[CONFIG_PATH_VARIABLE])
    raw = {} if path is None else _read_file(path)
    for name, value in _overrides(environ).items():
        section, key = name
        raw.setdefault(section, {})[key] = value
    redis_url = environ.get(REDIS_URL_VARIABLE)
    if redis_url and raw.get("redis", {}).get("url") is None:
        raw.setdefault("redis", {})["url"] = redis_url
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_explained(detail) for detail in error.errors())) from None
    _check_together(config)
    return config


def check_exposure(config: Config, service: str, address: str) -> None:
    """Raise `ConfigError` when `service` would be open to others than this machine without any protection."""
    if is_loopback(address):
        return
    if service == "api" and not config.api.allow_anonymous:
        raise ConfigError(
            f"api.bind_address {address} is reachable from other machines, but there are no API keys:"
            " bind a loopback address such as 127.0.0.1:8080, or set api.allow_anonymous = true"
        )
    if service not in {"api", "worker"} and not config.security.service_token.get_secret_value():
        raise ConfigError(
            f"{BIND_KEYS.get(service, service)} {address} is reachable from other machines: bind a loopback address,"
            " or set security.service_token to one secret shared by all control services"
        )


def _read_file(path: Path) -> Raw:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    raw: Raw = {}
    for section, keys in content.items():
        _known_section(section, f"section [{section}]")
        if not isinstance(keys, dict):
            raise ConfigError(f"{section} should be a section of its own, written [{section}]")
        for key in keys:
            _known_key(section, key, f"key {section}.{key}")
        raw[section] = dict(keys)
    return raw


def _overrides(environ: Mapping[str, str]) -> dict[tuple[str, str], object]:
    found: dict[tuple[str, str], object] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in NOT_KEYS:
            continue
        section, _, key = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        _known_section(section, f"environment variable {variable}")
        _known_key(section, key, f"environment variable {variable}")
        found[section, key] = _from_text(section, key, text)
    return found


def _from_text(section: str, key: str, text: str) -> object:
    default = getattr(getattr(Config(), section), key)
    if default is None and not text:
        return None
    if isinstance(default, tuple):
        if text.lstrip().startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                raise ConfigError(f"{section}.{key}: {text!r} should be a JSON list") from None
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _known_section(section: str, what: str) -> None:
    valid = list(Config.model_fields)
    if section not in valid:
        raise ConfigError(f"unknown {what}: the nearest section is [{_nearest(section, valid)}]")


def _known_key(section: str, key: str, what: str) -> None:
    valid = list(type(getattr(Config(), section)).model_fields)
    if key not in valid:
        raise ConfigError(f"unknown {what}: the nearest key is {section}.{_nearest(key, valid)}")


def _nearest(name: str, valid: list[str]) -> str:
    return difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]


def _explained(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower() + message[1:]}"


def _check_together(config: Config) -> None:
    """Rules over more than one key."""
    if config.network.backend_type != "http":
        raise ConfigError(
            f"network.backend_type: {config.network.backend_type!r} should be 'http'; of the backends of the"
            " specification, 'local', 'tcp' and 'libp2p' are not built"
        )
    if config.coordination.lease_ms <= config.coordination.heartbeat_ms:
        raise ConfigError(
            f"coordination.lease_ms: {config.coordination.lease_ms} should be more than"
            f" coordination.heartbeat_ms ({config.coordination.heartbeat_ms}), best four times as much"
        )
