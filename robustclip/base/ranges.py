"""What numbers a setting takes, said the same whether it comes from a command line, a config or a call."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from robustclip.base.errors import UserError


@dataclass(frozen=True)
class Whole:
    """Whole numbers from `least` to `most`."""

    least: int = 1
    most: int | None = None

    def has(self, value: Any) -> bool:
        """Return whether a value is one of them; True and False are no numbers."""
        if not isinstance(value, Integral) or isinstance(value, bool):
            return False
        return self.least <= int(value) and (self.most is None or int(value) <= self.most)

    def read(self, text: str) -> int:
        """Return the number a text writes; raises ValueError for one that writes none."""
        return int(text)

    def __str__(self) -> str:
        return f"a whole number of at least {self.least}" if self.most is None else f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Number:
    """Finite numbers from `least` to `most`, `most` itself only where it is `closed`."""

    least: float = 0.0
    most: float = math.inf
    closed: bool = True

    def has(self, value: Any) -> bool:
        """Return whether a value is one of them; True and False are no numbers."""
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        number = float(value)
        return self.least <= number < self.most or (self.closed and number == self.most)

    def read(self, text: str) -> float:
        """Return the number a text writes; raises ValueError for one that writes none."""
        return float(text)

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"a finite number of at least {self.least:g}"
        return f"a number from {self.least:g} to {'' if self.closed else 'below '}{self.most:g}"


Range = Whole | Number
COUNT, NATURAL, AMOUNT, SHARE = Whole(1), Whole(0), Number(), Number(most=1.0)
DECAY = Number(most=1.0, closed=False)
SEED = Whole(0, 2**32 - 1)  # what every generator that is given one takes
PIXELS = Whole(1, 1 << 14)  # the side of an image
DRAWN = Whole(1, 1 << 20)  # images of an embedded set, drawn in memory


def check(values: Mapping[str, Any], allowed: Mapping[str, Range], where: str = "") -> None:
    """Raise UserError for the first value that is out of its range and not None; `where` stands before its name."""
    for name, numbers in allowed.items():
        if values[name] is not None and not numbers.has(values[name]):
            raise UserError(f"{where}{name} is {values[name]!r}: it takes {numbers}")


def check_fields(settings: Any, where: str = "", /, **allowed: Range) -> None:
    """Raise UserError for the first field of a dataclass that is out of its range and not None; `where` stands before its name."""
    check({name: getattr(settings, name) for name in allowed}, allowed, where)
