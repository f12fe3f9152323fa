"""The frame that every command runs in: a mistake that a user can correct ends it with one line, not a traceback."""

import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from janus_jax.errors import UserError
from janus_jax.hardware import quiet_without_tpu
from janus_jax.training.resilience import exit_codes
from launch.cli import terminal

MISTAKE, INTERRUPTED = 2, 130  # exit codes


def run(main: Callable[[], None], hidden: Sequence[str] = ()) -> None:
    """Parses the flags and calls `main()`.

    A user's mistake and Ctrl-C become one line on stderr and an exit code. Any other error keeps its traceback.

    Args:
        hidden: Flags shared with other commands that mean nothing here; --help leaves them out.
    """

    def guarded(argv: list[str]) -> int | None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
            main()
            return None
        except (UserError, FloatingPointError, OSError) as error:  # a config file can raise an OSError, too
            return _fail(_config_mistake(error) or error)
        except RuntimeError as error:  # JAX's errors are RuntimeErrors; some commands never import JAX
            reason = out_of_memory(error)
            if reason is None:
                raise
            return _fail(reason)
        except KeyboardInterrupt as interrupt:
            return _interrupted(interrupt)

    terminal.accept_any_text()
    quiet_without_tpu()
    logging.set_verbosity(logging.WARNING)
    _show_flags_of_launch(hidden)
    app.run(guarded, flags_parser=_parse)


def end_at_once(interrupt: KeyboardInterrupt) -> NoReturn:
    """Ends an interrupted command whose threads and worker processes may never end by themselves."""
    exit_codes.end_at_once(_interrupted(interrupt))


def fail_at_once(reason: object, code: int = MISTAKE) -> NoReturn:
    """Ends a failed command without the waiting of a normal exit, for example for a process that is gone."""
    exit_codes.end_at_once(_fail(reason, code))


def require(*names: str) -> None:
    """Raises UserError for the first of these flags that has no value."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is required; --help lists all flags")


def pairs(flag: str, values: Sequence[str]) -> dict[str, str]:
    """The name=value arguments of a repeated flag."""
    split = [value.partition("=") for value in values]
    for name, equals, _ in split:
        if not name or not equals:
            raise UserError(f"--{flag}={name}: expected name=value")
    return {name: value for name, _, value in split}


def out_of_memory(error: RuntimeError) -> str | None:
    """A message where JAX's error says that a device has too little memory; None for any other error."""
    return f"the memory of a device is not enough: {error}" if str(error).startswith("RESOURCE_EXHAUSTED") else None


def _show_flags_of_launch(hidden: Sequence[str]) -> None:
    """Lists the flags that a command shares with others in its --help, but for the hidden ones.

    By itself, absl lists there only the flags that the main module defines.
    """
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("launch."):
            for flag in (flag for flag in defined if flag.name not in hidden):
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags and returns the remaining arguments; exits with one line where the flags are wrong."""
    try:
        return flags.FLAGS(without_repeats(argv))
    except SystemExit:  # absl's --help ends with 1
        sys.exit(0)
    except Exception as error:
        mistake = _config_mistake(error)
        if mistake is not None:
            sys.exit(_fail(mistake))
        if isinstance(error, KeyError | AttributeError):  # an override of a field that the locked config lacks
            sys.exit(_fail(f"--config has no field {_innermost_message(error)}"))
        if isinstance(error, flags.Error | TypeError | ValueError):
            sys.exit(_fail(error))
        raise


def without_repeats(argv: Sequence[str]) -> list[str]:
    """The arguments without earlier values of a field of the config that is given again: the last one counts.

    ml_collections (1.1) would append the values of a tuple, so that a script's default and its override would both be
    used. Arguments after `--` are left alone.
    """
    rest = list(argv)
    groups: list[tuple[str | None, list[str]]] = []  # field and arguments that belong together
    while rest and rest[0] != "--":
        given = [rest.pop(0)]
        field = re.fullmatch(r"--?(config\.[^=]+)(=.*)?", given[0], re.DOTALL)
        if field and field[2] is None and rest and not rest[0].startswith("-"):
            given.append(rest.pop(0))  # --config.FIELD VALUE
        groups.append((field[1] if field else None, given))
    last = {field: number for number, (field, _) in enumerate(groups)}
    kept = [given for number, (field, given) in enumerate(groups) if field is None or last[field] == number]
    return [*itertools.chain(*kept), *rest]


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    """Prints what was interrupted; returns the exit code."""
    print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
    return INTERRUPTED


def _fail(error: object, code: int = MISTAKE) -> int:
    """Prints the message as one line; returns the exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _config_mistake(error: BaseException) -> str | None:
    """What went wrong while the file of --config was loaded, and in which line of it; None for any other error.

    ml_collections wraps what a config file raises, or raises it only when the config is used. So the chain of causes is
    searched for the frame that loaded the file (written for ml_collections 1.1).
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
    if not os.path.isfile(file):
        hint = f"did you mean {file}.py" if os.path.isfile(f"{file}.py") else "expected FILE.py or FILE.py:STAGE"
        return f"--config={path}: there is no file {file!r}; {hint}, as in configs/"
    lines = [line for frame, line in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_filename.endswith(file)]
    place = f" (line {lines[-1]})" if lines else ""
    return f"--config={path}: {type(cause).__name__}: {cause}{place}"


def _innermost_message(error: BaseException) -> object:
    """The message of an exception whose message may itself be an exception."""
    message = error.args[0] if error.args else error
    return _innermost_message(message) if isinstance(message, BaseException) and message is not error else message
