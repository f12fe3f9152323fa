"""What all commands share: one-line errors instead of tracebacks for mistakes that a user can correct."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from janus_jax.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Parses flags, runs `main()`, and turns UserError and Ctrl-C into one line on stderr and an exit code."""

    def guarded(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
        main()
        return None

    def report(argv: list[str]) -> int | None:
        try:
            return guarded(argv)
        except (UserError, FloatingPointError, OSError) as error:  # OSError: also a config file that is not there
            return _fail(error)
        except KeyboardInterrupt as interrupt:
            print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
            return 130

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (KeyError, AttributeError) as error:  # an override of a field that the locked config does not have
            sys.exit(_fail(f"--config has no field {_innermost(error)}"))
        except (flags.Error, TypeError, ValueError) as error:
            sys.exit(_fail(error))

    logging.set_verbosity(logging.WARNING)
    app.run(report, flags_parser=parse)


def require(*names: str) -> None:
    """Raises UserError for the first of the flags that was not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is required; see --helpfull")


def _fail(error: object) -> int:
    """Prints the message as one line; returns the exit code."""
    message = str(error)
    if "Traceback" in message:  # an error inside a config file, quoted in full: its last line says what is wrong
        message = message.strip().splitlines()[-1].partition(": ")[2]
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _innermost(error: BaseException) -> object:
    """The message of an exception whose message may be another exception."""
    message = error.args[0] if error.args else error
    return _innermost(message) if isinstance(message, BaseException) and message is not error else message
