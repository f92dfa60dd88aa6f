import pytest

from services.partitioner.domain.byte_range import ByteRange, NoRange, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", ByteRange(0, 100)),
        ("bytes=10-19", ByteRange(10, 20)),
        ("bytes=99-99", ByteRange(99, 100)),
        ("bytes=90-500", ByteRange(90, 100)),
        ("bytes=-10", ByteRange(90, 100)),
        ("bytes=-500", ByteRange(0, 100)),
        ("bytes=100-", NoRange.UNSATISFIABLE),
        ("bytes=100-200", NoRange.UNSATISFIABLE),
        ("bytes=-0", NoRange.UNSATISFIABLE),
        (None, NoRange.WHOLE),
        ("bytes=-", NoRange.WHOLE),
        ("bytes=5-3", NoRange.WHOLE),
        ("bytes=0-1,5-6", NoRange.WHOLE),
        ("rows=0-1", NoRange.WHOLE),
        ("bytes=a-b", NoRange.WHOLE),
        ("bytes=" + "9" * 5_000 + "-", NoRange.WHOLE),
    ],
)
def test_the_range_header_is_understood(header: str | None, expected: ByteRange | NoRange) -> None:
    assert parse_range(header, 100) == expected
