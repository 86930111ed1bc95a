"""A number in a file is what it may be, or an error that says what it is not."""

import math

import pytest

from attnconv.runs.bounds import AMOUNT, COUNT, FINITE, ROUNDED_SHARE, SHARE, check_numbers


@pytest.mark.parametrize(
    ("number", "right", "wrong"),
    [
        (SHARE, (0, 0.5, 1, 1.0), (-1e-9, 1.5, math.nan, True, "0.5", None)),
        (ROUNDED_SHARE, (-1e-9, 1 + 1e-9), (-0.1, 1.1)),
        (COUNT, (0, 3), (-1, 2.0, math.inf, False)),
        (AMOUNT, (0, 2.5), (-0.1, math.inf, math.nan, [1])),
        (FINITE, (-3, 0.1), (math.inf, -math.inf, math.nan)),
    ],
)
def test_numbers_are_checked(number, right, wrong):
    for value in right:
        number.check("row 2 has x", value)
    for value in wrong:
        with pytest.raises(ValueError, match=f"row 2 has x .*, which is not {number.name}"):
            number.check("row 2 has x", value)


@pytest.mark.parametrize(("number", "cell"), [(COUNT, "1.5"), (SHARE, "88%"), (AMOUNT, ""), (FINITE, "nan")])
def test_cells_are_parsed_and_checked(number, cell):
    with pytest.raises(ValueError, match=f"row 1 has x .*{cell}.*, which is not {number.name}"):
        number.parse("row 1 has x", cell)
    assert (COUNT.parse("x", "12"), SHARE.parse("x", "0.5")) == (12, 0.5)


def test_missing_values_pass():
    check_numbers("it", {"a": None, "c": -1}, {"a": SHARE, "b": SHARE})
