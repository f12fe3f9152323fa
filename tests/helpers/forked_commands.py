"""Runs many commands in forks of one process, which has imported the libraries that take most of a command's time.

    python -m tests.helpers.forked_commands FOLDER < [["launch.chat", "--checkpoint=..."], ...] as JSON

A fork starts like `python -m launch.chat ...`: it runs the module as the main program, and no device was touched yet.
The output of the n-th command goes to FOLDER/n.out and FOLDER/n.err; the exit codes go to standard output as JSON.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from tests.helpers import REPOSITORY

AT_A_TIME = 2
LIMIT = 120  # Seconds after which a command is killed; its exit code is then -SIGALRM.


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def run_commands(commands, folder, **environment):
    """The outcome of each command, [module, argument, ...]; the files of their output stay in a folder."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.helpers.forked_commands", str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        input=json.dumps([[*map(str, command)] for command in commands]),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    codes = json.loads(run.stdout)
    return [
        Outcome(code, (folder / f"{i}.out").read_text(), (folder / f"{i}.err").read_text())
        for i, code in enumerate(codes)
    ]


def _start(folder, number, command):
    """Starts a fork; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LIMIT)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        module, *arguments = command
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:  # also KeyboardInterrupt: a fork must never return into the loop of its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(folder):
    import janus_jax.inference.loading
    import janus_jax.training.loop  # noqa: F401
    from janus_jax.models.params import abstract_params
    from janus_jax.models.presets import JANUS_PRO_TINY

    abstract_params(JANUS_PRO_TINY)  # most commands on a tiny model ask for them, and the forks have this answer ready
    commands, running, codes = list(enumerate(json.load(sys.stdin))), {}, {}
    while commands or running:
        while commands and len(running) < AT_A_TIME:
            number, command = commands.pop(0)
            running[_start(folder, number, command)] = number
        child, status = os.wait()
        codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
    json.dump([codes[number] for number in sorted(codes)], sys.stdout)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
