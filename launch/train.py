"""Trains one stage of a model, or an image tokenizer. Continues by itself when --workdir holds a checkpoint.

    python -m launch.train --config=configs/janus_pro_1b.py:stage1 --workdir=runs/stage1 \\
        --config.data.tokenizer=tokenizer.json --config.data.ratio.understand=0 \\
        --config.data.sources.generate='("data/imagenet-*.array_record",)'

Every field of the config is a flag, such as --config.train.num_steps=100; the fields stand in configs/base.py.
On several hosts, start the same command on each of them with --multihost.
"""

from absl import flags
from ml_collections import config_flags

from janus_jax.phases import phase
from janus_jax.training.resilience.exit_codes import RESTART
from launch.cli import compilation_cache, distributed, errors
from launch.cli.host_memory import keep_freed_memory
from launch.cli.phase_display import show_phases

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file and stage, such as configs/janus_pro_1b.py:stage1."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and TensorBoard logs of this run.")
flags.adopt_module_key_flags(distributed)  # so that --help shows them
flags.adopt_module_key_flags(compilation_cache)


def main() -> None:
    errors.require("config", "workdir")
    config = CONFIG.value
    config.lock()  # this first access raises the error of a config file that failed

    show_phases()
    with phase("starting"):
        import jax

        from janus_jax.evaluation.training_benchmarks import benchmark_measures
        from janus_jax.evaluation.training_samples import sample_actions
        from janus_jax.training.loop import train
        from janus_jax.training.resilience.preemption import DataStalled

    distributed.join()
    watchdog = distributed.watchdog()
    keep_freed_memory()
    compilation_cache.enable()
    try:
        train(config, WORKDIR.value, watchdog, sample_actions(config), benchmark_measures(config))
    except DataStalled as stop:
        errors.end_at_once(stop)
    except OSError as error:  # a disk, bucket or connection failed; a mistake of the user would be a UserError
        errors.fail_at_once(error, RESTART)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        memory = errors.out_of_memory(error)
        if memory is not None:  # a restart would fail in the same way
            errors.fail_at_once(memory)
        reason = str(error).splitlines()[0]
        errors.fail_at_once(
            f"process {jax.process_index()}: a step failed, as it does when another host of the run is gone: {reason}",
            RESTART,
        )


if __name__ == "__main__":
    errors.run(main)
