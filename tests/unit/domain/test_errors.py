from collections import Counter

from shared.domain import errors
from shared.domain.errors import ButterflyError, QueueFull, error_from_code


def all_errors(root: type[ButterflyError] = ButterflyError) -> list[type[ButterflyError]]:
    return [root, *(found for child in root.__subclasses__() for found in all_errors(child))]


def test_every_error_has_a_code_of_its_own() -> None:
    repeated = [code for code, count in Counter(error.code for error in all_errors()).items() if count > 1]
    assert repeated == []


def test_the_tree_on_top_of_the_file_names_every_error() -> None:
    assert errors.__doc__ is not None
    drawn = set(errors.__doc__.replace(":", " ").split())
    defined_here = {error.__name__ for error in all_errors() if error.__module__ == errors.__name__}
    assert defined_here - drawn == set()


def test_a_code_on_the_wire_becomes_the_same_error_again() -> None:
    error = error_from_code("queue_full", "1000 tasks wait", retry_after_s=2.0)
    assert type(error) is QueueFull
    assert (error.message, error.retry_after_s) == ("1000 tasks wait", 2.0)


def test_a_code_of_a_newer_version_becomes_the_root_error() -> None:
    assert type(error_from_code("never_heard_of", "x")) is ButterflyError
