"""Arithmetic of chat templates on numbers that stay small. One operation on huge ones, as `9**(9**9)`, takes hours in
which Python cannot be stopped; so it is refused, and constants are not computed while a template is compiled."""

from typing import Any

from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

_BITS = 1 << 14  # of a whole number, about 4900 digits
_PLACES = 400  # that `round` takes; a float64 has 308 before its point


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Where templates of strangers are compiled: operators, and `round`, raise OverflowError on huge whole numbers."""

    intercepted_binops = frozenset(("**", "*", "//", "/", "%"))

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.filters["round"] = _round

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits, other = left.bit_length(), right.bit_length()
            if operator == "**":
                bits *= max(right, 1)
            elif operator == "*":
                bits += other
            if max(bits, other) > _BITS:
                raise OverflowError(f"{operator} of numbers that are too large: at most {_BITS} bits")
        return super().call_binop(context, operator, left, right)


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > _PLACES or isinstance(value, int) and value.bit_length() > _BITS:
        raise OverflowError(f"round of a number that is too large, or to more than {_PLACES} places")
    return FILTERS["round"](value, precision, method)
