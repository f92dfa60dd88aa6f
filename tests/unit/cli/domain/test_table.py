from services.cli.domain.table import table


def test_columns_are_as_wide_as_their_content_and_lines_have_no_tail() -> None:
    assert table(("A", "LONG"), [("xyz", "1"), ("", "")]).split("\n") == ["A    LONG", "xyz  1", ""]
