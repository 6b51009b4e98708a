"""Type parameters of Function and its methods, for type checkers only.

Importing ``typing`` costs several milliseconds, which every container start would pay. At run time
``Generic[...]`` is therefore an empty class; checkers see the real one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generic as Generic
    from typing import TypeVar
    from typing import overload as overload

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    """What the user's function takes."""
    R_co = TypeVar("R_co", covariant=True)
    """What ``remote`` returns: for a coroutine function, what it gives when awaited."""
    L_co = TypeVar("L_co", covariant=True)
    """What ``local`` returns: exactly what the user's function returns."""
    Y_co = TypeVar("Y_co", covariant=True)
    """What a generator function yields."""
else:

    class Generic:
        """Subscripting gives the class itself."""

        __slots__ = ()

        def __class_getitem__(cls, item: object) -> type:
            return cls

    def overload(signature: object) -> object:
        """Overloads are for type checkers."""
        return signature

    P = R_co = L_co = Y_co = None
