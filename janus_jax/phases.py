"""What a long call is doing: a phase has a name and, where it is known, an amount of work.

The library says when a phase begins, how far it has come, and when it ends. It shows nothing by itself: a command
decides with `show_with` how phases are shown. Phases may run at the same time, in several threads.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

Advance: TypeAlias = Callable[[int], None]  # adds to the amount of work that is done
Display: TypeAlias = Callable[[str, int | None, str], AbstractContextManager[Advance]]


@contextlib.contextmanager
def nothing(name: str, total: int | None, unit: str) -> Iterator[Advance]:
    """The display that shows nothing."""
    yield lambda amount: None


_display: Display = nothing


def show_with(display: Display) -> None:
    """From now on `display(name, total, unit)` shows each phase of this process."""
    global _display
    _display = display


def phase(name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
    """A context manager around a phase, whose value is called with each amount of work that is done.

    Args:
        name: what is done, such as "reading weights".
        total: amount of work; None if it is not known.
        unit: of the amount, such as "B".
    """
    return _display(name, total, unit)
