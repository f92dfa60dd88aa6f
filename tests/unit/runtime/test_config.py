from pathlib import Path

import pytest

from shared.runtime.config import (
    BIND_KEYS,
    Config,
    ConfigError,
    check_exposure,
    is_loopback,
    load_config,
    split_address,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_file_and_environment_every_key_has_its_default() -> None:
    config = load_config(None, {})
    assert config == Config()
    assert config.api.bind_address == "127.0.0.1:8080"
    assert config.scheduling.dispatch_batch_size == 10
    assert config.coordination.checkpoint_interval == 10


def test_the_specifications_example_loads_but_for_its_backend(tmp_path: Path) -> None:
    text = """
    [api]
    bind_address = "0.0.0.0:8080"
    max_request_size_mb = 100
    request_timeout_secs = 30
    [scheduling]
    scheduler_type = "priority"
    max_queue_size = 1000
    dispatch_batch_size = 10
    [partition]
    default_strategy = "load_balanced"
    cache_size = 100
    recompute_threshold = 0.1
    [coordination]
    node_id = 0
    cluster_size = 3
    max_byzantine = 1
    phase_timeout_ms = 5000
    checkpoint_interval = 10
    [network]
    backend_type = "tcp"
    max_connections = 100
    send_timeout_ms = 1000
    retry_attempts = 3
    retry_backoff_ms = 100
    [metrics]
    collector_type = "prometheus"
    export_interval_secs = 60
    retention_duration_secs = 3600
    """
    with pytest.raises(ConfigError, match=r"network.backend_type: 'tcp' should be 'http'.*'libp2p' are not built"):
        load_config(written(tmp_path, text), {})
    config = load_config(written(tmp_path, text.replace('"tcp"', '"http"')), {})
    assert config.api.bind_address == "0.0.0.0:8080"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[scheduling]\nmax_queue_size = 5\ndispatch_batch_size = 7\n")
    config = load_config(path, {"BUTTERFLY_SCHEDULING__MAX_QUEUE_SIZE": "9", "HOME": "/"})
    assert (config.scheduling.max_queue_size, config.scheduling.dispatch_batch_size) == (9, 7)


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[worker]\nslots = 3\n")
    assert load_config(None, {"BUTTERFLY_CONFIG": str(path), "BUTTERFLY_PARENT_PID": "1"}).worker.slots == 3


@pytest.mark.parametrize("text", ["a, b", '["a", "b"]'])
def test_lists_in_the_environment_are_json_or_separated_by_commas(text: str) -> None:
    assert load_config(None, {"BUTTERFLY_SCHEDULING__PRELOAD_MODELS": text}).scheduling.preload_models == ("a", "b")


def test_an_empty_variable_unsets_an_optional_key(tmp_path: Path) -> None:
    path = written(tmp_path, "[partition]\nnum_stages = 3\n")
    assert load_config(path, {"BUTTERFLY_PARTITION__NUM_STAGES": ""}).partition.num_stages is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[schedulling]\n", r"unknown section \[schedulling\]: the nearest section is \[scheduling\]"),
        ("[api]\nmax_request_size = 1\n", "unknown key api.max_request_size: .*api.max_request_size_mb"),
        ("api = 3\n", r"api should be a section of its own, written \[api\]"),
        ("[api\n", "is not valid TOML"),
        ("[api]\nmax_request_size_mb = -1\n", "api.max_request_size_mb: input should be greater than or equal to 1"),
        ("[partition]\nrecompute_threshold = nan\n", "partition.recompute_threshold: input should be a finite number"),
        ('[scheduling]\nscheduler_type = "lifo"\n', "scheduling.scheduler_type: input should be 'priority' or 'fifo'"),
        ('[api]\nbind_address = "8080"\n', "api.bind_address: '8080' should be host:port, such as"),
        ("[coordination]\ntail_audit_fraction = 1.1\n", "tail_audit_fraction: input should be less than or equal to 1"),
        ("[coordination]\ntail_audit_fraction = -0.1\n", "tail_audit_fraction: .* greater than or equal to 0"),
        ("[coordination]\ntail_audit_fraction = nan\n", "tail_audit_fraction: input should be a finite number"),
        ("[coordination]\nlease_ms = 500\n", "coordination.lease_ms: 500 should be more than .*heartbeat_ms"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_what_would_be_right(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        load_config(written(tmp_path, text), {})


@pytest.mark.parametrize(
    ("variable", "wanted"),
    [
        ("BUTTERFLY_SCHEDULER__MAX_QUEUE_SIZE", r"BUTTERFLY_SCHEDULER__MAX_QUEUE_SIZE: .*\[scheduling\]"),
        ("BUTTERFLY_API__BINDADDRESS", "BUTTERFLY_API__BINDADDRESS: the nearest key is api.bind_address"),
        ("BUTTERFLY_API", "the nearest key is api."),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(variable: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        load_config(None, {variable: "1"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.toml: No such file"):
        load_config(tmp_path / "nowhere.toml", {})


def test_secrets_are_never_printed() -> None:
    config = load_config(None, {"BUTTERFLY_SECURITY__SERVICE_TOKEN": "hush", "REDIS_URL": "redis://:pw@h/0"})
    assert config.security.service_token.get_secret_value() == "hush"
    assert config.redis.url is not None
    assert "hush" not in repr(config)
    assert "pw" not in repr(config)


def test_the_customary_redis_variable_gives_way_to_our_own() -> None:
    both = {"REDIS_URL": "redis://a", "BUTTERFLY_REDIS__URL": "redis://b"}
    url = load_config(None, both).redis.url
    assert url is not None
    assert url.get_secret_value() == "redis://b"


@pytest.mark.parametrize("service", ["scheduler", "partitioner", "coordinator", "metrics"])
def test_a_control_service_without_token_stays_on_loopback(service: str) -> None:
    check_exposure(Config(), service, "127.0.0.1:1")
    with pytest.raises(ConfigError, match=BIND_KEYS[service]):
        check_exposure(Config(), service, "0.0.0.0:1")
    check_exposure(load_config(None, {"BUTTERFLY_SECURITY__SERVICE_TOKEN": "x"}), service, "0.0.0.0:1")


def test_the_api_without_keys_stays_on_loopback_unless_anonymous_is_allowed() -> None:
    with pytest.raises(ConfigError, match="allow_anonymous"):
        check_exposure(Config(), "api", "0.0.0.0:8080")
    check_exposure(load_config(None, {"BUTTERFLY_API__ALLOW_ANONYMOUS": "true"}), "api", "0.0.0.0:8080")


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("host:65535", ("host", 65535))],
)
def test_an_address_is_a_host_and_a_port(address: str, wanted: tuple[str, int]) -> None:
    assert split_address(address) == wanted


@pytest.mark.parametrize("address", ["", "127.0.0.1", ":80", "h:", "h:65536", "h:-1", "h:x"])
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False), ("example.org:1", False)],
)
def test_loopback_is_told_from_the_rest(address: str, wanted: bool) -> None:
    assert is_loopback(address) is wanted
