import pytest

from services.cli.domain.cluster import Kind, last_port, port_of, seats, stop_waves, waves


def test_ports_follow_the_base_port() -> None:
    ports = {seat.name: seat.port for seat in seats(8080, 2, with_redis=True)}
    assert ports == {
        "api": 8080,
        "scheduler": 8081,
        "partitioner": 8082,
        "coordinator": 8083,
        "metrics": 8084,
        "redis": 8085,
        "worker-0": 8090,
        "worker-1": 8091,
    }


def test_what_others_need_starts_first_and_what_needs_not_each_other_starts_together() -> None:
    names = [[seat.name for seat in wave] for wave in waves(seats(8080, 2, with_redis=True))]
    assert names == [
        ["redis"],
        ["metrics", "partitioner"],
        ["coordinator"],
        ["scheduler", "worker-0", "worker-1"],
        ["api"],
    ]


def test_the_gateway_stops_first_and_redis_last() -> None:
    names = [{seat.name for seat in wave} for wave in stop_waves(seats(8080, 2, with_redis=True))]
    assert names == [
        {"api"},
        {"scheduler"},
        {"coordinator"},
        {"worker-0", "worker-1"},
        {"partitioner", "metrics"},
        {"redis"},
    ]


def test_no_redis_is_started_when_one_is_configured() -> None:
    assert Kind.REDIS not in {seat.kind for seat in seats(8080, 1, with_redis=False)}


@pytest.mark.parametrize(("num_workers", "expected"), [(0, 8089), (1, 8090), (4, 8093)])
def test_the_last_port_is_that_of_the_last_worker(num_workers: int, expected: int) -> None:
    assert last_port(8080, num_workers) == expected
    taken = {seat.port for seat in seats(8080, num_workers, with_redis=True)}
    assert max(taken) <= expected


def test_every_seat_names_the_setting_of_its_port() -> None:
    assert all("." in seat.port_setting for seat in seats(8080, 1, with_redis=True))
    assert port_of(8080, Kind.METRICS) == 8084
