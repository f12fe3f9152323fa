"""Trains one stage of a model, or an image tokenizer; resumes by itself when --workdir holds a checkpoint.

    python -m launch.train --config=configs/janus_pro_1b.py:stage1 --workdir=runs/stage1 \\
        --config.data.tokenizer=tokenizer.json --config.data.ratio.understand=0 \\
        --config.data.sources.generate='("data/imagenet-*.array_record",)'

On several hosts the same command runs on each, with --multihost.
"""

import jax
from absl import flags
from ml_collections import config_flags

from janus_jax.training.loop import train
from janus_jax.training.resilience.exit_codes import RESTART
from janus_jax.training.resilience.preemption import DataStalled
from launch.cli import distributed, errors
from launch.cli.host_memory import keep_freed_memory

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py:STAGE; fields: --config.a.b=value")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of checkpoints, metrics and TensorBoard logs")


def main() -> None:
    errors.require("config", "workdir")
    distributed.join()
    watchdog = distributed.watchdog()
    keep_freed_memory()
    config = CONFIG.value
    config.lock()  # the first access raises what went wrong in its file
    try:
        train(config, WORKDIR.value, watchdog)
    except DataStalled as stop:
        errors.end_at_once(stop)
    except OSError as error:  # not a mistake, which is a UserError, but a disk, a bucket, a connection
        errors.fail_at_once(error, RESTART)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        memory = errors.out_of_memory(error)
        if memory is not None:  # which a restart would not mend
            errors.fail_at_once(memory)
        reason = str(error).splitlines()[0]
        errors.fail_at_once(
            f"process {jax.process_index()}: a step failed, as it does when another host of the run is gone: {reason}",
            RESTART,
        )


if __name__ == "__main__":
    errors.run(main)
