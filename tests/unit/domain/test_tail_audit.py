from collections.abc import Callable
from dataclasses import replace

import pytest

from shared.contracts.receipts import BundleBody
from shared.domain.bundle import Bundle, TrustedKeys, check_bundle
from shared.domain.errors import InvalidInput
from shared.domain.tail_audit import TailAudit
from shared.domain.tail_state import TailState
from tests.fakes.bundles import HonestRun
from tests.fakes.identities import COORDINATOR_KEY, KEYS, N1, N2

RUN = HonestRun()


def audited(tail: TailAudit | None, run: HonestRun = RUN) -> Bundle:
    return replace(run.bundle(), tail_state=TailState.PASSED, tail=tail)


@pytest.mark.parametrize("epochs", [(4,), (2, 2), (1, 2, 1)])
def test_an_audit_that_passed_holds_whatever_epochs_the_answer_took(epochs: tuple[int, ...]) -> None:
    run = HonestRun(epochs=epochs)
    guarantee = check_bundle(audited(run.tail(), run), trusted=TrustedKeys(COORDINATOR_KEY.public_key))
    assert guarantee.tail_state is TailState.PASSED
    assert guarantee.tail_nodes == tuple(run.node(2, stage).node_id for stage in range(3))
    assert guarantee.sentence.endswith("; tail audit: passed, computed alike once more by 3 fresh nodes")


def test_it_survives_the_way_through_a_file() -> None:
    text = BundleBody.of(audited(RUN.tail())).model_dump_json()
    assert BundleBody.model_validate_json(text).bundle() == audited(RUN.tail())


@pytest.mark.parametrize("state", [TailState.NONE, TailState.PENDING, TailState.SKIPPED])
def test_what_is_no_proof_is_told_as_the_coordinators_word(state: TailState) -> None:
    guarantee = check_bundle(replace(RUN.bundle(), tail_state=state))
    assert guarantee.sentence.endswith(f"; tail audit: {state}")
    assert guarantee.tail_nodes == ()


def test_a_revoked_answer_is_called_so_first_of_all() -> None:
    assert check_bundle(replace(RUN.bundle(), tail_state=TailState.FAILED)).sentence.startswith("revoked: ")


def drop_last(tail: TailAudit) -> TailAudit:
    return replace(tail, receipts=tail.receipts[:-1])


def forged(tail: TailAudit) -> TailAudit:
    first = replace(tail.receipts[0], signature=bytes(64))
    return replace(tail, receipts=(first, *tail.receipts[1:]))


def twice(tail: TailAudit) -> TailAudit:
    return replace(tail, receipts=(*tail.receipts, tail.receipts[-1]))


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (drop_last, "has not computed all rows"),
        (forged, "wrong signature"),
        (twice, "does not hold"),
        (lambda tail: replace(tail, receipts=()), "has not computed all rows"),
        (lambda tail: replace(tail, orders=tail.orders[:-1]), "does not cover the whole model"),
        (lambda tail: replace(tail, orders=tail.orders[1:]), "not those of one lane"),
        (lambda tail: replace(tail, epoch=1), "after the answer's last epoch"),
        (lambda tail: replace(tail, keys={}), "but not its public key"),
        (lambda tail: replace(tail, keys={**tail.keys, N1: KEYS[N2].public_key}), "not its public key"),
        (lambda _: RUN.tail(lane=1), "not fresh"),
        (lambda _: HonestRun(token_ids=tuple(range(50, 66))).tail(), "another result"),
        (lambda _: HonestRun(model_root="ab" * 32).tail(), "another model_root"),
        (lambda _: HonestRun(prompt_ids=(5, 6, 8)).tail(), "another prefix_digest"),
    ],
)
def test_an_audit_that_does_not_hold_is_refused(spoil: Callable[[TailAudit], TailAudit], wanted: str) -> None:
    with pytest.raises(InvalidInput, match=wanted):
        check_bundle(audited(spoil(RUN.tail())))


def test_a_file_that_says_it_passed_must_show_it() -> None:
    with pytest.raises(InvalidInput, match="does not hold it"):
        check_bundle(audited(None))


def test_auditors_that_the_reader_does_not_trust_do_not_count() -> None:
    run = HonestRun(mode=RUN.mode)
    only = TrustedKeys(COORDINATOR_KEY.public_key, frozenset(list(KEYS)[:3]))
    assert check_bundle(audited(run.tail()), trusted=only).tail_nodes
