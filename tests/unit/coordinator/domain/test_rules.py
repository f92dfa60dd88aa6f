"""The small rules: pacing, liveness, admission, faults, slots, link tokens."""

import math

import pytest

from services.coordinator.domain.admission import check_address, check_capability
from services.coordinator.domain.faults import (
    AWAY_S,
    GENERATION_FAILED,
    MAX_REASSIGNMENTS,
    Fault,
    FaultKind,
    kind_of_fault,
    kind_of_refusal,
    not_asked_for_s,
    verdict,
)
from services.coordinator.domain.link_token import link_token
from services.coordinator.domain.liveness import is_stalled, node_state
from services.coordinator.domain.slots import SlotLedger
from shared.domain.errors import InvalidInput, NoCapacity
from shared.domain.ids import NodeId
from shared.domain.pacing import Pacing, pace
from shared.domain.plan import Partition
from shared.domain.session import NodeState
from tests.fakes.identities import capability
from tests.fakes.partitioner import even_plan


class TestPacing:
    def test_on_one_host_one_batch_uses_all_its_cores(self) -> None:
        nodes = [capability(f"n{i}", host="a", cores=2) for i in range(3)]
        assert pace(nodes) == Pacing(1, (2, 2, 2))

    def test_on_several_hosts_every_stage_works_at_once_on_its_share_of_cores(self) -> None:
        nodes = [capability("n1", host="a"), capability("n2", host="a"), capability("n3", host="b")]
        assert pace(nodes) == Pacing(3, (2, 2, 4))

    def test_a_seat_has_at_least_one_core(self) -> None:
        nodes = [capability(f"n{i}", host="a", cores=1) for i in range(2)] + [capability("n3", host="b", cores=1)]
        assert pace(nodes).threads == (1, 1, 1)

    def test_nodes_that_name_no_host_share_none(self) -> None:
        assert pace([capability("n1", host=""), capability("n2", host="")]) == Pacing(2, (4, 4))

    def test_a_single_stage_has_one_batch_in_flight(self) -> None:
        assert pace([capability("n1", host="")]) == Pacing(1, (4,))

    def test_a_lane_beside_others_gets_its_nodes_share_of_their_host(self) -> None:
        nodes = [capability(f"n{i}", host="a", cores=8) for i in range(4)]
        assert pace(nodes[:3], beside=nodes) == Pacing(1, (2, 2, 2))

    def test_a_node_with_seats_in_two_lanes_counts_once(self) -> None:
        nodes = [capability("n1", host=""), capability("n2", host="")]
        assert pace(nodes, beside=nodes[::-1]).threads == (4, 4)


class TestLiveness:
    @pytest.mark.parametrize(
        ("silent_s", "phi", "timer_lag_s", "quarantined", "draining", "unreachable", "expected"),
        [
            (0.0, 0.0, 0.0, False, False, False, NodeState.READY),
            (1.0, 7.9, 1.0, False, False, False, NodeState.READY),
            (1.1, 8.0, 0.0, False, False, False, NodeState.SUSPECT),
            (0.0, 0.0, 1.1, False, False, False, NodeState.SUSPECT),
            (0.0, 0.0, 0.0, False, False, True, NodeState.SUSPECT),
            (1.1, 9.0, 0.0, False, True, False, NodeState.DRAINING),
            (1.1, 9.0, 0.0, True, True, True, NodeState.QUARANTINED),
            (2.1, 9.0, 0.0, True, True, False, NodeState.LOST),
            (2.1, 0.0, 0.0, False, False, False, NodeState.LOST),
        ],
    )
    def test_state_by_silence(
        self,
        silent_s: float,
        phi: float,
        timer_lag_s: float,
        quarantined: bool,
        draining: bool,
        unreachable: bool,
        expected: NodeState,
    ) -> None:
        state = node_state(
            silent_s=silent_s,
            lease_s=2.0,
            phi=phi,
            timer_lag_s=timer_lag_s,
            quarantined=quarantined,
            draining=draining,
            unreachable=unreachable,
        )
        assert state is expected

    def test_a_quiet_session_on_quiet_nodes_is_stalled(self) -> None:
        assert is_stalled(silent_s=5.1, nodes_silent_s=5.1, timeout_s=5.0)
        assert not is_stalled(silent_s=4.9, nodes_silent_s=100, timeout_s=5.0)

    def test_a_quiet_session_on_busy_nodes_is_given_longer_but_not_for_ever(self) -> None:
        assert not is_stalled(silent_s=59, nodes_silent_s=0.1, timeout_s=5.0)
        assert is_stalled(silent_s=61, nodes_silent_s=0.1, timeout_s=5.0)


class TestAdmission:
    def test_an_ordinary_node_is_admitted(self) -> None:
        check_capability(capability("Node-1.local:8090_x"))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("memory_bytes", 0),
            ("memory_bytes", 1 << 60),
            ("speed", 0.0),
            ("speed", math.nan),
            ("speed", math.inf),
            ("speed", -1.0),
            ("slots", 0),
            ("slots", 10_000),
            ("context_tokens", 0),
            ("cores", 0),
            ("cores", 100_000),
        ],
    )
    def test_nonsense_is_refused_by_its_name(self, field: str, value: object) -> None:
        with pytest.raises(InvalidInput) as refused:
            check_capability(capability("n1", **{field: value}))
        assert refused.value.param == f"capability.{field}"

    @pytest.mark.parametrize(
        "address", ["http://127.0.0.1:8090", "https://worker_1.local:8090/", "http://[::1]:8090", "http://node-7"]
    )
    def test_an_address_that_can_be_called_is_admitted(self, address: str) -> None:
        check_address(address)

    @pytest.mark.parametrize(
        "address",
        [
            "http://",
            "http://:8090",
            "http://n1:port",
            "http://n1:0",
            "http://n1:99999",
            "http://n1\x00:8090",
            "http://n 1:8090",
            "http://n1..local:8090",
            "http://" + "x" * 64,
            "http://xn--a:8090",
            "http://[::1",
            "http://[n1]:8090",
            "http://[fe80::1%25eth0]:8090",
            "http://user:password@n1:8090",
            "http://n1:8090/path",
            "http://n1:8090?query",
            "ftp://n1:8090",
        ],
    )
    def test_an_address_that_no_call_could_use_is_refused(self, address: str) -> None:
        with pytest.raises(InvalidInput) as refused:
            check_address(address)
        assert refused.value.param == "address"

    def test_endless_labels_are_refused(self) -> None:
        with pytest.raises(InvalidInput):
            check_capability(capability("n1", labels=(("zone", "x" * 1_000),)))
        with pytest.raises(InvalidInput):
            check_capability(capability("n1", labels=tuple((str(i), "x") for i in range(100))))


class TestFaults:
    def test_one_loss_of_each_kind_is_survived(self) -> None:
        assert verdict([Fault(kind, "why", position) for position, kind in enumerate(FaultKind)][:5]) is None

    def test_two_crashes_at_different_positions_are_survived(self) -> None:
        assert verdict([Fault(FaultKind.CRASH, "why", 4), Fault(FaultKind.CRASH, "why", 5)]) is None

    def test_two_crashes_at_one_position_are_poison_even_with_a_loss_between(self) -> None:
        faults = [
            Fault(FaultKind.CRASH, "why", 4),
            Fault(FaultKind.GONE, "why", 4),
            Fault(FaultKind.CRASH, "why", 4),
        ]
        given_up = verdict(faults)
        assert given_up is not None
        assert given_up.code == GENERATION_FAILED
        assert "poison" in given_up.message

    def test_lost_nodes_at_one_position_are_no_poison(self) -> None:
        assert verdict([Fault(FaultKind.GONE, "why", 4)] * MAX_REASSIGNMENTS) is None

    def test_reassignments_are_bounded(self) -> None:
        assert verdict([Fault(FaultKind.GONE, "why", 4)] * (MAX_REASSIGNMENTS + 1)) is not None

    @pytest.mark.parametrize("kind", [FaultKind.GONE, FaultKind.LINK])
    def test_nodes_that_go_away_do_not_count_against_a_task_that_gets_further(self, kind: FaultKind) -> None:
        assert verdict([Fault(kind, "why", 4 * index) for index in range(50)]) is None
        stuck = [Fault(kind, "why", position) for position in (4, 8, 3, 8, 8, 0, 8)]
        assert verdict(stuck[:-1]) is None
        assert verdict(stuck) is not None

    def test_what_workers_do_wrong_counts_however_far_the_answer_gets(self) -> None:
        assert verdict([Fault(FaultKind.LOAD, "why", 4 * index) for index in range(MAX_REASSIGNMENTS + 1)]) is not None

    @pytest.mark.parametrize("code", ["circuit_open", "invalid_api_key", "stale_epoch", "task_not_found"])
    def test_a_node_is_asked_again_when_its_reason_may_pass(self, code: str) -> None:
        assert not_asked_for_s(code) == AWAY_S

    def test_a_node_that_cannot_hold_a_seat_is_not_asked_again(self) -> None:
        assert not_asked_for_s("out_of_memory") == not_asked_for_s("made up") == math.inf

    @pytest.mark.parametrize(
        ("code", "kind"),
        [("engine_fault", FaultKind.CRASH), ("out_of_memory", FaultKind.LOAD), ("made up", FaultKind.LOAD)],
    )
    def test_only_an_engine_that_failed_has_crashed(self, code: str, kind: FaultKind) -> None:
        assert kind_of_refusal(code) is kind_of_fault(code) is kind

    def test_that_a_node_was_not_asked_does_not_count_against_a_task_and_only_before_it_has_a_seat(self) -> None:
        assert kind_of_refusal("circuit_open") is FaultKind.LACK
        assert kind_of_fault("circuit_open") is FaultKind.LOAD
        assert verdict([Fault(FaultKind.LACK, "why", 4)] * 50) is None


class TestSlots:
    nodes = {NodeId(name): capability(name, slots=2) for name in ("n1", "n2")}  # noqa: RUF012  read only
    seats: tuple[Partition, ...] = even_plan(["n1", "n2"]).lanes[0].partitions

    def test_slots_are_counted_per_stage_of_a_node(self) -> None:
        ledger = SlotLedger()
        for holder in ("a", "b"):
            ledger.reserve(holder, "root", self.seats, self.nodes)
        with pytest.raises(NoCapacity):
            ledger.reserve("c", "root", self.seats, self.nodes)
        ledger.reserve("c", "another model", self.seats, self.nodes)
        assert ledger.used(NodeId("n1")) == 2

    def test_every_lane_takes_its_slots(self) -> None:
        ledger, plan = SlotLedger(), even_plan(["n1", "n2"], num_lanes=2)  # each node holds both stages
        for holder in ("a", "b"):
            ledger.reserve(holder, "root", plan.seats, self.nodes)
        assert ledger.used(NodeId("n1")) == 2
        with pytest.raises(NoCapacity):
            ledger.reserve("c", "root", self.seats, self.nodes)
        ledger.release("a")
        ledger.reserve("c", "root", self.seats, self.nodes)

    def test_two_seats_of_one_holder_in_one_stage_take_two_slots(self) -> None:
        ledger = SlotLedger()
        ledger.reserve("a", "root", [self.seats[0], self.seats[0]], self.nodes)
        assert ledger.used(NodeId("n1")) == 2
        with pytest.raises(NoCapacity):
            ledger.reserve("b", "root", self.seats[:1], self.nodes)

    def test_who_gives_way_takes_free_slots_only_and_loses_them_to_who_does_not(self) -> None:
        ledger, told = SlotLedger(), list[str]()
        ledger.reserve("session", "root", self.seats, self.nodes)
        ledger.reserve("audit", "root", self.seats, self.nodes, yields=lambda: told.append("audit"))
        with pytest.raises(NoCapacity):
            ledger.reserve("another", "root", self.seats, self.nodes, yields=lambda: told.append("another"))
        assert ledger.used(NodeId("n1")) == 1  # for whoever plans sessions there is room
        ledger.reserve("elsewhere", "another model", self.seats, self.nodes)
        assert told == []
        ledger.reserve("late", "root", self.seats, self.nodes)
        assert told == ["audit"]
        assert ledger.used(NodeId("n1")) == 2
        ledger.release("audit")
        with pytest.raises(NoCapacity):
            ledger.reserve("later", "root", self.seats, self.nodes)

    def test_a_session_that_is_refused_drives_nobody_out(self) -> None:
        ledger, told = SlotLedger(), list[str]()
        ledger.reserve("session", "root", self.seats[:1], self.nodes)
        ledger.reserve("session 2", "root", self.seats[:1], self.nodes)
        ledger.reserve("audit", "root", self.seats[1:], self.nodes, yields=lambda: told.append("audit"))
        with pytest.raises(NoCapacity):
            ledger.reserve("late", "root", self.seats, self.nodes)
        assert told == []

    def test_a_refused_holder_holds_nothing(self) -> None:
        ledger = SlotLedger()
        with pytest.raises(NoCapacity):
            ledger.reserve("a", "root", self.seats, {NodeId("n1"): self.nodes[NodeId("n1")]})
        assert ledger.used(NodeId("n1")) == 0

    def test_a_new_reservation_replaces_the_old_one(self) -> None:
        ledger = SlotLedger()
        for _ in range(5):
            ledger.reserve("a", "root", self.seats, self.nodes)
        assert ledger.used(NodeId("n1")) == 1
        ledger.release("a")
        ledger.release("a")
        assert ledger.used(NodeId("n1")) == 0


def test_a_link_token_depends_on_both_ends_their_order_the_receiver_s_run_and_the_secret() -> None:
    a, b = NodeId("a"), NodeId("b")
    told_apart = [
        (b"s", a, b, "boot"),
        (b"s", b, a, "boot"),
        (b"t", a, b, "boot"),
        (b"s", a, a, "boot"),
        (b"s", a, b, "later"),
    ]
    tokens = {link_token(secret, sender, receiver, receiver_boot=boot) for secret, sender, receiver, boot in told_apart}
    assert len(tokens) == len(told_apart)
    assert link_token(b"s", a, b, receiver_boot="boot") in tokens
