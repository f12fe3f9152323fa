"""Runs `launch.train` with a training that fails at once, in the way that --fail names."""

import threading
import time

import jax
from absl import flags

from janus_jax.training import loop
from launch import train
from launch.cli import errors

OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 7 bytes.")
FAIL = flags.DEFINE_enum("fail", None, ["interrupt", "bucket", "memory", "memory_of_several"], "way to fail")


def fail(*_):
    if FAIL.value == "interrupt":
        threading.Thread(target=time.sleep, args=(60,)).start()
        errors.end_at_once(KeyboardInterrupt("no data"))
    if FAIL.value == "memory_of_several":
        jax.process_count = lambda: 2
    raise ConnectionError("the bucket is gone") if FAIL.value == "bucket" else OUT_OF_MEMORY


if __name__ == "__main__":
    loop.train = fail
    errors.run(train.main)
