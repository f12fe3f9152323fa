"""What all commands share: one-line errors instead of tracebacks for mistakes that a user can correct."""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from janus_jax.errors import UserError
from janus_jax.training.resilience import exit_codes


def run(main: Callable[[], None]) -> None:
    """Parses flags, runs `main()`, and turns a user's mistakes and Ctrl-C into one line on stderr and an exit code."""

    def guarded(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
        main()
        return None

    def report(argv: list[str]) -> int | None:
        try:
            return guarded(argv)
        except (UserError, FloatingPointError, OSError) as error:  # OSError: also from within a config file
            return _fail(_config_mistake(error) or error)
        except RuntimeError as error:  # JAX's own is one; not every command imports it
            reason = out_of_memory(error)
            if reason is None:
                raise
            return _fail(reason)
        except KeyboardInterrupt as interrupt:
            return _interrupted(interrupt)

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except Exception as error:
            mistake = _config_mistake(error)
            if mistake is not None:
                sys.exit(_fail(mistake))
            if isinstance(error, KeyError | AttributeError):  # an override of a field that the locked config lacks
                sys.exit(_fail(f"--config has no field {_innermost(error)}"))
            if isinstance(error, flags.Error | TypeError | ValueError):
                sys.exit(_fail(error))
            raise

    logging.set_verbosity(logging.WARNING)
    app.run(report, flags_parser=parse)


def end_at_once(interrupt: KeyboardInterrupt) -> NoReturn:
    """Ends an interrupted command whose threads and worker processes may never end by themselves."""
    exit_codes.end_at_once(_interrupted(interrupt))


def fail_at_once(reason: object, code: int = 2) -> NoReturn:
    """Ends a command that failed, without what a normal end would wait for, such as a process that is gone."""
    exit_codes.end_at_once(_fail(reason, code))


def require(*names: str) -> None:
    """Raises UserError for the first of the flags that was not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is required; see --helpfull")


def pairs(flag: str, values: Sequence[str]) -> dict[str, str]:
    """The name=value arguments of a repeated flag."""
    split = [value.partition("=") for value in values]
    for name, equals, _ in split:
        if not name or not equals:
            raise UserError(f"--{flag}={name}: expected name=value")
    return {name: value for name, _, value in split}


def out_of_memory(error: RuntimeError) -> str | None:
    """What to tell of JAX's error where a device has too little memory; None for any other error."""
    return f"the memory of a device is not enough: {error}" if str(error).startswith("RESOURCE_EXHAUSTED") else None


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    """Prints what was interrupted; returns the exit code."""
    print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
    return 130


def _fail(error: object, code: int = 2) -> int:
    """Prints the message as one line; returns the exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _config_mistake(error: BaseException) -> str | None:
    """What went wrong while the file of a --config was run, and where in it; None for any other error.

    The libraries wrap what a config file raises, or raise it later, so the chain of causes is searched for the loader.
    """
    found = None
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame.f_code is ConfigFileFlagParser.parse.__code__:
                found = cause, frame.f_locals["path"]
        cause = cause.__cause__ or cause.__context__
    if found is None:
        return None
    cause, path = found
    if isinstance(cause, UserError):
        return str(cause)
    file = path.partition(":")[0]
    lines = [line for frame, line in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_filename.endswith(file)]
    place = f" (line {lines[-1]})" if lines else ""
    return f"--config={path}: {type(cause).__name__}: {cause}{place}"


def _innermost(error: BaseException) -> object:
    """The message of an exception whose message may be another exception."""
    message = error.args[0] if error.args else error
    return _innermost(message) if isinstance(message, BaseException) and message is not error else message
