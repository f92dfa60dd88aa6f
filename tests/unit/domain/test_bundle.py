"""The offline check: honest answers hold, and whatever is changed in one is found."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import ValidationError

from shared.contracts.receipts import BundleBody
from shared.domain.bundle import Bundle, TrustedKeys, check_bundle, committed_entries
from shared.domain.errors import InvalidInput
from shared.domain.ids import TaskId
from shared.domain.numerics import Profile
from shared.domain.receipt import SignedReceipt, read_receipt, sign_receipt
from shared.domain.signing import SigningKey
from shared.domain.task import SamplerParams, Verification
from shared.domain.window_entry import WindowEntry
from tests.fakes.bundles import CUTS, NUMERICS, HonestRun
from tests.fakes.identities import COORDINATOR_KEY, KEYS
from tests.fakes.tasks import make_token

NONE = HonestRun(mode=Verification.NONE, f=0)
QUORUM = HonestRun(mode=Verification.QUORUM)


@pytest.mark.parametrize(
    "run",
    [
        HonestRun(),
        HonestRun(epochs=(1,)),
        HonestRun(epochs=(2, 1, 2)),
        HonestRun(prompt_ids=(9,)),
        HonestRun(f=2),
        HonestRun(sampler=SamplerParams(temperature=0.3, seed=-5, logit_bias=((7, -1.5),), logprobs=2)),
        HonestRun(token_ids=(100, 101, 102, 103), epochs=(3,)),
        NONE,
        QUORUM,
        replace(QUORUM, lanes_late=((1, 2), (2, 0))),
    ],
)
def test_an_honest_answer_holds_and_its_json_says_the_same(run: HonestRun) -> None:
    bundle = run.bundle()
    assert BundleBody.model_validate_json(BundleBody.of(bundle).model_dump_json()).bundle() == bundle
    guarantee = check_bundle(bundle)
    assert (guarantee.mode, guarantee.f, guarantee.num_tokens) == (run.mode, run.f, len(bundle.answer_ids))
    assert [each.window.row_end for each in guarantee.windows] == [entry.row_end for entry in bundle.entries]


def test_the_guarantee_is_one_line() -> None:
    sentence = check_bundle(HonestRun().bundle(), trusted=TrustedKeys(COORDINATOR_KEY.public_key)).sentence
    assert sentence == (
        "verified: mode audit, profile exact, f = 1: 11 tokens in 4 windows, each stage computed alike by at least"
        " 2 of 3 nodes; committed by a coordinator you trust; tail audit: none"
    )


def test_an_answer_of_mode_none_is_called_unverified() -> None:
    assert check_bundle(NONE.bundle()).sentence.startswith("unverified (mode none")


def test_an_answer_cut_by_a_stop_string_holds() -> None:
    assert check_bundle(HonestRun().bundle(num_tokens=9)).num_tokens == 9


def test_an_answer_that_ends_windows_before_the_last_does_not() -> None:
    with pytest.raises(InvalidInput, match="windows go on beyond it"):
        check_bundle(HonestRun().bundle(num_tokens=7))


def test_a_running_answer_holds_and_says_that_it_is_not_whole() -> None:
    sentence = check_bundle(HonestRun(epochs=(2,)).bundle(complete=False)).sentence
    assert sentence.endswith("not the whole answer; tail audit: none")


def test_the_agreed_chain_values_are_those_of_every_boundary() -> None:
    run = HonestRun()
    last = check_bundle(run.bundle()).windows[-1]
    assert set(last.ends) == set(CUTS)
    for boundary in CUTS:
        assert last.starts[boundary] == run.chain(boundary).at(last.window.row_start).hex()
        assert last.ends[boundary] == run.chain(boundary).at(last.window.row_end).hex()


def changed(bundle: Bundle, index: int, **changes: object) -> Bundle:
    entries = list(bundle.entries)
    entries[index] = replace(entries[index], **changes)  # type: ignore[arg-type]  # a test names fields that exist
    return replace(bundle, entries=tuple(entries))


def resigned(run: HonestRun, index: int, receipts: tuple[SignedReceipt, ...]) -> Bundle:
    """A coordinator that commits these receipts for a window."""
    bundle, honest = run.bundle(), run.bundle().entries[index]
    forged = run.sign_entry(honest, receipts)
    return changed(bundle, index, root=forged.root, receipts=forged.receipts, commit=forged.commit)


def receipts_of(entry: WindowEntry) -> tuple[SignedReceipt, ...]:
    texts = (json.loads(signed.text.partition(b"\n")[2]) for signed in entry.receipts)
    pairs = zip(entry.receipts, texts, strict=True)
    return tuple(read_receipt(signed, KEYS[text["node_id"]].public_key) for signed, text in pairs)


def with_receipt(run: HonestRun, index: int, place: int, **changes: Any) -> Bundle:
    """A receipt of window `index` says something else; its node signs it, and the coordinator commits it."""
    receipts = list(receipts_of(run.bundle().entries[index]))
    receipt = replace(receipts[place].receipt, **changes)
    receipts[place] = sign_receipt(KEYS[receipt.node_id], receipt)
    return resigned(run, index, tuple(receipts))


@dataclass(frozen=True)
class OneNodeTwice(HonestRun):
    def node(self, lane: int, stage: int) -> SigningKey:
        return super().node(0, stage) if stage == 1 else super().node(lane, stage)


OTHER = "0" * 64
LAST = 3
TAMPERINGS: dict[str, tuple[Callable[[], Bundle], str]] = {
    "a missing window": (
        lambda: replace(HonestRun().bundle(), entries=HonestRun().entries()[:1] + HonestRun().entries()[2:]),
        "window 1 is missing",
    ),
    "a missing last window": (
        lambda: replace(HonestRun().bundle(), entries=HonestRun().entries()[:-1]),
        "ids are not those that were committed",
    ),
    "no window": (lambda: replace(HonestRun().bundle(), entries=()), "no committed window"),
    "windows of an older epoch after those of a newer": (
        lambda: replace(
            HonestRun(epochs=(2, 2)).bundle(),
            entries=HonestRun(epochs=(2, 2)).entries()[:3] + HonestRun().entries()[3:],
        ),
        "does not go on where the window before ended",
    ),
    "other ids in the answer": (
        lambda: replace(HonestRun().bundle(), answer_ids=(1, *HonestRun().bundle().answer_ids[1:])),
        "ids are not those that were committed",
    ),
    "other ids in answer and window": (
        lambda: changed(
            replace(HonestRun().bundle(), answer_ids=(99, *HonestRun().bundle().answer_ids[1:])),
            0,
            records=(make_token(99),),
        ),
        "given other ids|committed other ids",
    ),
    "another prompt": (lambda: replace(HonestRun().bundle(), prompt_ids=(5, 6, 8)), "other ids"),
    "other sampling": (
        lambda: replace(HonestRun().bundle(), sampler=SamplerParams(temperature=0.5)),
        "other sampling parameters",
    ),
    "another task": (lambda: replace(HonestRun().bundle(), task_id=TaskId("another")), "is of task"),
    "a stronger mode than it was": (
        lambda: replace(NONE.bundle(), mode=Verification.AUDIT, f=1),
        "committed in mode none",
    ),
    "a stronger mode in the windows, too": (
        lambda: replace(
            NONE.bundle(),
            mode=Verification.AUDIT,
            f=1,
            entries=tuple(replace(entry, mode=Verification.AUDIT, f=1) for entry in NONE.entries()),
        ),
        "1 nodes signed the same, 2 are needed",
    ),
    "a missing receipt": (
        lambda: changed(HonestRun().bundle(), 1, receipts=HonestRun().entries()[1].receipts[:-1]),
        "are not those that were committed",
    ),
    "a receipt missing from a commit": (
        lambda: resigned(HonestRun(), LAST, receipts_of(HonestRun().entries()[LAST])[:-1]),
        "stage 2: 1 nodes signed the same, 2 are needed",
    ),
    "one node in both lanes": (lambda: OneNodeTwice().bundle(), "stage 1: 1 nodes signed the same, 2 are needed"),
    "a different output": (
        lambda: with_receipt(HonestRun(), LAST, 4, out_digest=OTHER),
        "stage 1: 1 nodes signed the same, 2 are needed",
    ),
    "a different input": (
        lambda: with_receipt(HonestRun(), LAST, 3, in_digest=OTHER),
        "stage 0: 1 nodes signed the same, 2 are needed",
    ),
    "another window's receipt": (lambda: with_receipt(HonestRun(), LAST, 0, window=2), "window is not what it"),
    "other rows": (lambda: with_receipt(HonestRun(), LAST, 0, row_end=12), "row_end is not what it"),
    "a broken chain of receipts": (
        lambda: with_receipt(HonestRun(), LAST, 0, prev_receipt=OTHER),
        "prev_receipt is not what it",
    ),
    "another node than was seated": (
        lambda: with_receipt(HonestRun(), LAST, 0, node_id=list(KEYS)[5]),
        "node_id is not what it",
    ),
    "another model": (lambda: with_receipt(HonestRun(), LAST, 0, model_root=OTHER), "model_root is not what it"),
    "another class": (
        lambda: replace(
            HonestRun().bundle(),
            entries=tuple(replace(entry, numerics_class=NUMERICS + "2") for entry in HonestRun().entries()),
        ),
        "another numerics class",
    ),
    "the orders left out": (
        lambda: changed(HonestRun().bundle(), 0, orders=()),
        "no order",
    ),
    "an order left out": (
        lambda: changed(HonestRun().bundle(), 0, orders=HonestRun().entries()[0].orders[1:]),
        "a seat that nobody gave it",
    ),
    "a coordinator that is another": (
        lambda: changed(HonestRun().bundle(), 2, coordinator_key=SigningKey(b"x" * 32).public_key),
        "by another coordinator",
    ),
    "a key of another node": (
        lambda: changed(HonestRun().bundle(), 2, keys=dict.fromkeys(KEYS, SigningKey(b"x" * 32).public_key)),
        "but not its public key",
    ),
    "records that were not sampled": (
        lambda: changed(
            HonestRun().bundle(),
            1,
            records=tuple(replace(each, logit=9.0) for each in HonestRun().entries()[1].records),
        ),
        "out_digest is not the chain of the records",
    ),
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_tampering_is_found(kind: str) -> None:
    make, sentence = TAMPERINGS[kind]
    with pytest.raises(InvalidInput, match=sentence):
        check_bundle(make())


@pytest.mark.parametrize("field", ["orders", "receipts"])
def test_a_changed_signature_is_found(field: str) -> None:
    bundle = HonestRun().bundle()
    first, *rest = getattr(bundle.entries[0], field)
    forged = replace(first, signature=bytes([first.signature[0] ^ 1]) + first.signature[1:])
    with pytest.raises(InvalidInput, match="a wrong signature"):
        check_bundle(changed(bundle, 0, **{field: (forged, *rest)}))


def test_a_changed_signature_of_a_commit_is_found() -> None:
    bundle = HonestRun().bundle()
    commit = replace(bundle.entries[1].commit, signature=bytes(64))
    with pytest.raises(InvalidInput, match=r"the commit of window 1 does not hold: .*a wrong signature"):
        check_bundle(changed(bundle, 1, commit=commit))


def test_a_reader_who_knows_the_coordinator_takes_no_other() -> None:
    other = SigningKey(b"x" * 32)
    trusted = TrustedKeys(COORDINATOR_KEY.public_key)
    check_bundle(HonestRun(coordinator=other).bundle())
    with pytest.raises(InvalidInput, match="is not the one you trust"):
        check_bundle(HonestRun(coordinator=other).bundle(), trusted=trusted)


def test_a_reader_who_knows_the_nodes_takes_no_others() -> None:
    first, second, third, *_ = KEYS
    known = TrustedKeys(COORDINATOR_KEY.public_key, frozenset({first, second, third}))
    assert check_bundle(HonestRun().bundle(), trusted=known).keys_are_known
    with pytest.raises(InvalidInput, match="no node you trust"):
        check_bundle(HonestRun().bundle(), trusted=replace(known, nodes=frozenset({first, second})))


NOT_SIGNED = {"model", "finish_reason", "complete"}
"""What the client was told beside the proof; `complete` weakens what the check says."""


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, (*path, place))
    else:
        yield path


def test_whatever_is_changed_in_the_file_is_found() -> None:
    """Every value of the file, each in turn."""
    bundle = HonestRun(epochs=(2,)).bundle()
    signers = {receipt.receipt.node_id for entry in bundle.entries for receipt in receipts_of(entry)}
    used = {node_id: KEYS[node_id].public_key for node_id in signers}
    bundle = replace(bundle, entries=tuple(replace(entry, keys=used) for entry in bundle.entries))
    text = BundleBody.of(bundle).model_dump_json()
    missed = []
    for path in leaves(json.loads(text)):
        if path[0] in NOT_SIGNED:
            continue
        body = json.loads(text)
        place = body
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = other_than(place[path[-1]])
        try:
            check_bundle(BundleBody.model_validate(body).bundle())
        except (InvalidInput, ValidationError, ValueError):
            continue
        missed.append(path)
    assert not missed


def other_than(value: object) -> object:
    match value:
        case None:
            return 1
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            middle = len(value) // 2
            return value[:middle] + ("1" if value[middle : middle + 1] != "1" else "2") + value[middle + 1 :]
        case _:
            raise AssertionError(value)


def test_the_profile_is_that_of_the_orders() -> None:
    run = HonestRun(profile=Profile.DECODE_EXACT, row_class=3)
    found = check_bundle(run.bundle())
    assert (found.profile, found.row_class) == (Profile.DECODE_EXACT, 3)
    assert "mode audit, profile decode-exact, f = 1" in found.sentence
    with pytest.raises(InvalidInput, match="not those of profile exact"):
        check_bundle(replace(run.bundle(), profile=Profile.EXACT))


def test_entries_that_were_never_committed_are_left_out() -> None:
    run, again = HonestRun(epochs=(4,)), HonestRun(epochs=(2, 2))
    kept = (*run.entries()[:4], *again.entries()[2:])
    everything = tuple(sorted(kept, key=lambda entry: (entry.window, entry.epoch)))
    num_tokens = again.entries()[-1].num_tokens
    assert committed_entries(everything, num_tokens=num_tokens, has_completed=True) == again.entries()
    third = tuple(entry for entry in everything if (entry.window, entry.epoch) != (3, 2))
    num_tokens = again.entries()[2].num_tokens
    assert committed_entries(third, num_tokens=num_tokens, has_completed=False) == again.entries()[:3]


def test_an_entry_ahead_of_the_commit_of_a_running_task_is_left_out() -> None:
    entries = HonestRun().entries()
    assert committed_entries(entries, num_tokens=entries[1].num_tokens, has_completed=False) == entries[:2]
    assert committed_entries(entries, num_tokens=0, has_completed=False) == ()


def test_after_rows_that_nobody_signed_nothing_is_shown() -> None:
    entries = NONE.entries()
    gap = (*entries[:2], replace(entries[2], row_start=entries[2].row_start + 1), entries[3])
    assert committed_entries(gap, num_tokens=entries[3].num_tokens, has_completed=True) == entries[:2]


def test_a_stop_string_ends_the_answer_inside_the_last_committed_window() -> None:
    entries = HonestRun().entries()
    assert committed_entries(entries, num_tokens=entries[2].num_tokens - 1, has_completed=True) == entries[:3]
