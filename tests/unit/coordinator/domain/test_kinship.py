from services.coordinator.domain.kinship import StageKey, first_difference, kin_of
from shared.domain.ids import NodeId
from shared.domain.numerics import Profile, StageFacts

HERE: StageKey = ("root", 0, 2)
THERE: StageKey = ("root", 2, 4)


def facts(digest: str) -> StageFacts:
    return StageFacts("class", digest, Profile.EXACT, None)


def kin(**told: dict[StageKey, StageFacts]) -> dict[str, str]:
    return {str(node): name for node, name in kin_of({NodeId(node): found for node, found in told.items()}).items()}


def test_nodes_that_agree_or_have_nothing_in_common_are_of_one_kin() -> None:
    assert kin(a={HERE: facts("1")}, b={HERE: facts("1")}, c={THERE: facts("9")}, d={}) == dict.fromkeys("abcd", "")


def test_who_differs_at_a_stage_is_of_another_kin_and_the_many_have_the_empty_name() -> None:
    told = kin(a={HERE: facts("0")}, b={HERE: facts("1")}, c={HERE: facts("1")}, d={})
    assert told == {"a": "kin of a", "b": "", "c": "", "d": ""}


def test_a_node_joins_those_with_which_it_has_most_in_common() -> None:
    odd, usual = {HERE: facts("0")}, {HERE: facts("1")}
    told = kin(a=odd, b=usual, c=usual, d=usual, e={**odd, THERE: facts("5")}, f={THERE: facts("5")}, g=usual)
    assert told["a"] == told["e"] == told["f"] == "kin of a"
    assert told["b"] == told["c"] == told["d"] == ""


def test_one_that_agrees_with_some_and_differs_from_others_is_never_put_among_the_others() -> None:
    told = kin(a={HERE: facts("1"), THERE: facts("1")}, b={HERE: facts("1"), THERE: facts("2")}, c={THERE: facts("2")})
    assert told["a"] != told["b"] == told["c"]


def test_the_first_stage_whose_seats_differ_is_named() -> None:
    one, two, other = facts("1"), facts("2"), facts("3")
    assert first_difference([[one, two], [one, two]]) is None
    assert first_difference([[one, two], [one, other]]) == 1
