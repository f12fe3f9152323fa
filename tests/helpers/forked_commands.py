"""Runs commands of `launch` in forks of one process that has imported what they import, which takes them most time.

    python -m tests.helpers.forked_commands FOLDER < [["chat", "--checkpoint=..."], ...] as JSON

What the n-th command says goes to FOLDER/n.out and FOLDER/n.err, exit codes as JSON to standard output. A fork is what
`python -m launch.chat ...` is: modules of `launch` are imported there, and no device is touched before.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import janus_jax.inference.loading
import janus_jax.training.loop  # noqa: F401

AT_A_TIME = 2


def start(folder, number, command):
    """The id of the process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        module, *arguments = command
        sys.argv = [module, *arguments]
        runpy.run_module(f"launch.{module}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:  # also KeyboardInterrupt: a fork must never return into the loop of its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(folder):
    commands, running, codes = list(enumerate(json.load(sys.stdin))), {}, {}
    while commands or running:
        while commands and len(running) < AT_A_TIME:
            number, command = commands.pop(0)
            running[start(folder, number, command)] = number
        child, status = os.wait()
        codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
    json.dump([codes[number] for number in sorted(codes)], sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
