import pytest

from glipv2_d2.errors import one_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("a\n  b\tc "), "a b c"), (ValueError(" \n"), "ValueError"), (RecursionError(), "RecursionError")],
)
def test_an_error_is_one_line_and_without_a_message_its_type(error, expected):
    assert one_line(error) == expected
