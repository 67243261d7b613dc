"""Checks of an attack's arguments: eps and step sizes (8/255, 0.03, "1e-2"), counts, rates."""

import math
from fractions import Fraction

from netkin.errors import UserError


def fraction(value: float | str, name: str) -> float:
    """A number in (0, 1], in pixels of [0, 1]. Raises UserError with the argument's `name`."""
    try:
        number = float(math.prod(_parts(str(value))))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            f"{name}={value} is not a number; write a fraction such as 8/255 or a decimal"
        ) from None
    if not 0 < number <= 1:
        hint = f"; did you mean {value}/255?" if number > 1 else ""
        raise UserError(f"{name}={value} is outside (0, 1], the range of pixels{hint}")
    return number


def whole_number(value: int, name: str, least: int = 1) -> int:
    """An integer of `least` or more. Raises UserError with the argument's `name`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} must be a whole number of {least} or more, got {value!r}")
    return value


def non_negative(value: float, name: str) -> float:
    """A number of 0 or more. Raises UserError with the argument's `name`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise UserError(f"{name} must be a number of 0 or more, got {value!r}")
    return value


def flag(value: bool, name: str) -> bool:
    """True or False. Raises UserError with the argument's `name`."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {value!r}")
    return value


def _parts(text: str) -> tuple[Fraction, Fraction]:
    """A number or a quotient of two as (numerator, 1 / denominator), exactly."""
    numerator, _, denominator = text.replace(" ", "").partition("/")
    return Fraction(numerator), 1 / Fraction(denominator or 1)
