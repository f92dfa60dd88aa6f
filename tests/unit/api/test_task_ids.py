import uuid

from hypothesis import given
from hypothesis import strategies as st

from services.api.domain.task_ids import is_task_id, new_task_id


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_an_id_is_a_uuid_of_version_seven(unix_ms: int, entropy: bytes) -> None:
    task_id = new_task_id(unix_ms, entropy)
    parsed = uuid.UUID(task_id)
    assert str(parsed) == task_id
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == unix_ms
    assert is_task_id(task_id)


def test_ids_sort_by_time() -> None:
    assert new_task_id(1_000, b"\xff" * 10) < new_task_id(1_001, b"\x00" * 10)


def test_other_texts_are_no_ids() -> None:
    for text in ("", "x", "0199F2AA-0000-7000-8000-000000000001", "0199f2aa-0000-4000-8000-000000000001"):
        assert not is_task_id(text)
