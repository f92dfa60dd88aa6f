from services.cli.domain.cluster import Kind, port_of, seats, stop_waves, waves


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


def test_replicas_have_names_and_ports_of_their_own() -> None:
    found = seats(8080, 0, with_redis=False, replicas={Kind.SCHEDULER: 3, Kind.COORDINATOR: 2})
    ports = {seat.name: seat.port for seat in found if seat.kind in {Kind.SCHEDULER, Kind.COORDINATOR}}
    assert ports == {
        "coordinator": 8083,
        "coordinator-1": 8183,
        "scheduler": 8081,
        "scheduler-1": 8181,
        "scheduler-2": 8281,
    }


def test_every_seat_names_the_setting_of_its_port() -> None:
    assert all("." in seat.port_setting for seat in seats(8080, 1, with_redis=True))
    assert port_of(8080, Kind.METRICS) == 8084
