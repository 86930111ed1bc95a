"""What numbers in files may be, so that a damaged file is an error and not a published number."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Number:
    """What a finite number in a file may be."""

    name: str
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False

    def check(self, what: str, value: Any) -> None:
        """Raise ValueError for any other value; `what` names it, as "row 2 has test_acc"."""
        fits = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
        if not (fits and self.low <= value <= self.high and (isinstance(value, int) or not self.whole)):
            raise ValueError(f"{what} {value!r}, which is not {self.name}")

    def parse(self, what: str, cell: str) -> float:
        """Return the number in a cell of a table.

        Raises:
            ValueError: see `check`.
        """
        try:
            value = int(cell) if self.whole else float(cell)
        except ValueError:
            raise ValueError(f"{what} {cell!r}, which is not {self.name}") from None
        self.check(what, value)
        return value


FINITE = Number("a finite number")
AMOUNT = Number("a number of at least 0", 0)
COUNT = Number("a whole number of at least 0", 0, whole=True)
SHARE = Number("a share from 0 to 1", 0, 1)
ROUNDED_SHARE = Number("a share from 0 to 1", -1e-6, 1 + 1e-6)  # computed as a difference of rounded numbers


def check_numbers(what: str, values: Mapping[str, Any], numbers: Mapping[str, Number]) -> None:
    """Check the values that are there and not None, by their keys.

    Raises:
        ValueError: one is not what it may be; the message begins with `what`.
    """
    for key, number in numbers.items():
        if values.get(key) is not None:
            number.check(f"{what} has {key}", values[key])
