"""Names of earlier versions, which work for one release and warn."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator that accepts a keyword under its old name: `@renamed(old="new")`.

    The call warns and names the new one. Both at once are refused, as any unknown keyword is.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: Any, **given: Any) -> T:
            for old, new in names.items():
                if old in given and new not in given:
                    message = f"{function.__name__}({old}=) is now called {new}="
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    given[new] = given.pop(old)
            return function(*args, **given)

        return call

    return decorate
