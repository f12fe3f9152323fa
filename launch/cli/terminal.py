"""How commands read and write text of a terminal, or of the file or pipe in its place."""

import io
import sys


def accept_any_text() -> None:
    """Lets no character end a command.

    A byte of the input that is not text becomes a surrogate, which is refused with the line it is in. A character that
    the output cannot show is escaped, as Python does for errors.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
