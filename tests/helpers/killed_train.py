"""Runs `launch.train` of a tokenizer and its discriminator and ends itself with signal 9 when it reaches --kill=PLACE.

An audit hook sees the folders that a save makes and renames; `kill_in_a_step` waits inside the compiled program.
"""

import os
import signal
import sys
from typing import Any, NamedTuple

import jax
from absl import flags

from janus_jax.training import adversarial_step
from launch import train
from launch.cli import errors


class Call(NamedTuple):
    """A call of the operating system, just before it is made."""

    name: str
    path: str  # end of the path that it makes


PLACES = {
    # A step folder and the folders of its items have another name until they are complete, then they are renamed.
    "a save is half written": Call("os.rename", "checkpoints/2.orbax-checkpoint-tmp/params"),
    "a save is written but not complete": Call("os.rename", "checkpoints/3"),
    "the networks are updated": None,
    "a save is complete and the next begins": Call("os.mkdir", "checkpoints/5.orbax-checkpoint-tmp"),
}
KILL = flags.DEFINE_enum("kill", None, list(PLACES), "place")


def kill_before(call: Call) -> None:
    """Ends this process at the first such call."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == call.name and str(arguments[event == "os.rename"]).endswith(call.path):  # a rename has two paths
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_in_a_step() -> None:
    """Ends this process in its first step, as soon as the tokenizer is updated; the discriminator may or may not be."""
    update = adversarial_step.updated

    def updated(*arguments: Any) -> Any:
        state = update(*arguments)
        jax.debug.callback(lambda _: os.kill(os.getpid(), signal.SIGKILL), jax.tree.leaves(state.trainable)[0])
        return state

    adversarial_step.updated = updated


def main() -> None:
    call = PLACES[KILL.value]
    kill_before(call) if call else kill_in_a_step()
    train.main()


if __name__ == "__main__":
    errors.run(main)
