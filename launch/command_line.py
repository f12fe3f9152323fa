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
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as interrupt:
            print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
            return 130

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (flags.Error, UserError, AttributeError, KeyError, ValueError, TypeError, FileNotFoundError) as error:
            # A config file or an override of one of its fields can raise any of these.
            message = str(error).strip("'\"").splitlines()[0]
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    logging.set_verbosity(logging.WARNING)
    app.run(report, flags_parser=parse)


def require(*names: str) -> None:
    """Raises UserError for the first of the flags that was not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is required; see --helpfull")
