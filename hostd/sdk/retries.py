"""How often and when a failed input runs again."""

from __future__ import annotations

from hostd.errors import InvalidError


class Retries:
    """A policy: retry n waits ``initial_delay * backoff_coefficient ** (n - 1)`` seconds.

    The wait is at least 1 s and at most ``max_delay``. Timeouts count as failures; a container that
    is lost with its host does not use up a retry.
    """

    __slots__ = ("backoff_coefficient", "initial_delay", "max_delay", "max_retries")

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
    ) -> None:
        _check("max_retries", max_retries, 0, 100)
        _check("backoff_coefficient", backoff_coefficient, 1, 10)
        _check("initial_delay", initial_delay, 0, 60)
        _check("max_delay", max_delay, 1, 60)
        self.max_retries = max_retries
        self.backoff_coefficient = backoff_coefficient
        self.initial_delay = initial_delay
        self.max_delay = max_delay

    def fields(self) -> dict[str, object]:
        """The policy as the API takes it."""
        return {
            "max_retries": self.max_retries,
            "backoff_coefficient": float(self.backoff_coefficient),
            "initial_delay_s": float(self.initial_delay),
            "max_delay_s": float(self.max_delay),
        }

    def __repr__(self) -> str:
        return (
            f"Retries(max_retries={self.max_retries}, "
            f"backoff_coefficient={self.backoff_coefficient}, "
            f"initial_delay={self.initial_delay}, max_delay={self.max_delay})"
        )


def retries_of(given: int | Retries | None) -> Retries | None:
    """The policy that a ``retries=`` argument means: n alone is n retries, one second apart.

    Raises:
        InvalidError: it is neither, or out of range.
    """
    if given is None or isinstance(given, Retries):
        return given
    if isinstance(given, bool) or not isinstance(given, int):
        raise InvalidError(f"retries is {given!r}, expected a number or hostd.Retries(...)")
    return Retries(max_retries=given, backoff_coefficient=1.0)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidError(f"retries: {name} is {value!r}, expected {low} to {high}")
