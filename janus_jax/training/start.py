"""The start of a run: everything that can be wrong is found here, before the first step and before it compiles."""

import dataclasses
import json
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from janus_jax.data.stream import Stream
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import CodeModelConfig, FamilyConfig, ModelConfig, VAEConfig
from janus_jax.models.params import Params, abstract_params, count
from janus_jax.phases import phase
from janus_jax.sharding import AUTO, row_shares, rows_of_process
from janus_jax.storage import prepare_folder, write_whole
from janus_jax.training.auto_remat import RematChoice, plan_with_remat
from janus_jax.training.checkpointing import CONFIG_FILE, Checkpoints, has_checkpoint
from janus_jax.training.freezing import format_table, merge, module_table, split
from janus_jax.training.initialization import FRESH, format_origins, initial_params
from janus_jax.training.latents import open_vae
from janus_jax.training.lora import lora_record, require_same_adapters
from janus_jax.training.loss_networks import initial_discriminator, open_loss_networks
from janus_jax.training.memory import check_memory
from janus_jax.training.plan import Plan, tasks
from janus_jax.training.setup import num_shards, num_workers, open_stream, open_tokenizer
from janus_jax.training.stored_codes import check_stored_codes
from janus_jax.training.train_state import TrainState
from janus_jax.training.validation import open_held_out
from janus_jax.weights.lora_run import read_record, require_same_base, write_record
from janus_jax.weights.native import save_params, write_architecture
from janus_jax.weights.vae import VAE_FOLDER


class Run(NamedTuple):
    """What belongs to a run and does not change from step to step."""

    config: ConfigDict
    plan: Plan
    tokenizer: Tokenizer | None  # None: the run trains an image tokenizer
    vae: tuple[VAEConfig, Params] | None  # None: the run learns no latents of a VAE
    workdir: epath.Path
    checkpoints: Checkpoints
    stream: Stream  # rows of this process
    held_out: Stream | None  # held-out rows of this process; None: the run is not validated
    process_index: int  # place of this process among those that feed different rows
    process_count: int  # number of parts into which the processes divide the rows of a batch


def open_run(config: ConfigDict, workdir: epath.PathLike) -> tuple[Run, TrainState]:
    """Opens everything that a run needs. Returns it with the state to start from, restored or new.

    Raises:
        UserError: Something is wrong with the config, the workdir, the data or the checkpoint.
        OSError: The workdir cannot be written.
    """
    plan, remat = plan_with_remat(config)
    architecture = plan.architecture
    workdir = prepare_folder("workdir", workdir)
    continues = has_checkpoint(workdir, architecture)
    if not continues:
        _require_origin(config)
    tokenizer = open_tokenizer(config, architecture)
    if tokenizer is not None and continues:
        _require_same_tokenizer(workdir / FILE_NAME, tokenizer)
    record = None if plan.lora is None else lora_record(config, architecture, plan.lora, plan.mask)
    if continues:
        require_same_adapters(workdir, record)
    vae = open_vae(config, architecture, workdir if continues else None)
    process_index, process_count = rows_of_process(plan.rows, config.train.batch_size)
    platform = plan.mesh.devices.flat[0].platform
    stream = open_stream(
        config,
        architecture,
        tokenizer,
        process_index=process_index,
        process_count=process_count,
        platform=platform,
    )
    held_out = open_held_out(config, architecture, tokenizer, process_index, process_count)
    say(_format_choices(config, plan, remat, num_workers(config, process_count, platform)))
    _say_what_is_odd(config, architecture, tokenizer, held_out)
    if config.check_memory:
        say(check_memory(config, plan, vae[0] if vae else None))
    say(format_table(module_table(abstract_params(architecture, plan.lora), plan.mask)))
    loss_networks = open_loss_networks(config, architecture, plan.execution.dtype, plan.mesh)
    checkpoints = Checkpoints(workdir, architecture, config.checkpoint.keep, trained_only=plan.lora is not None)
    run = Run(config, plan, tokenizer, vae, workdir, checkpoints, stream, held_out, process_index, process_count)
    with phase("reading the checkpoint" if continues else "making the first state"):
        restored = _restore(run)
        state, digests = _new_state(run) if restored is None else _with_base(run, restored)
    state = state._replace(loss_networks=loss_networks)
    if config.data.stored_codes and isinstance(architecture, CodeModelConfig) and architecture.vq:
        vq = merge(state.trainable, state.frozen)["vq"]
        check_stored_codes(stream.patterns, architecture.vq, vq)
    if is_first_process():
        if record is not None:
            write_record(workdir, dataclasses.replace(record, digests=digests))
        _write_run(run, architecture, is_new=restored is None)
    return run, state


def is_first_process() -> bool:
    """Whether this process writes logs and prints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints in the first process only, and no empty line."""
    if text and is_first_process():
        print(text, flush=True)


def _restore(run: Run) -> TrainState | None:
    """The state of the newest checkpoint; None when there is none. The stream continues behind it."""
    restored = run.checkpoints.restore_newest(run.plan.state, run.plan.mask)
    if restored is None:
        return None
    state, data_state = restored
    run.stream.set_state(data_state)
    say(f"resumed from checkpoint {int(state.step)} in {run.workdir}")
    if changes := _changed_settings(run.workdir / CONFIG_FILE, run.config):
        say(f"changed since the last start: {', '.join(changes)}")
    if int(state.step) >= run.config.train.num_steps:
        say(f"all {run.config.train.num_steps} steps are done; raise train.num_steps to train further")
    return state


def _with_base(run: Run, state: TrainState) -> tuple[TrainState, dict[str, str]]:
    """A restored state with the frozen parameters below adapters, which no checkpoint holds, and their digests."""
    plan = run.plan
    if plan.lora is None:
        return state, {}
    initial = initial_params(run.config, plan.architecture, plan.mesh, run.tokenizer, plan.lora)
    record = read_record(run.workdir)
    require_same_base(run.config.init.checkpoint, initial.digests, record.digests)
    return state._replace(frozen=split(initial.params, plan.mask)[1]), initial.digests


def _new_state(run: Run) -> tuple[TrainState, dict[str, str]]:
    """The state before the first step, and the digests of the base of adapters."""
    plan = run.plan
    params, origins, digests = initial_params(run.config, plan.architecture, plan.mesh, run.tokenizer, plan.lora)
    say(format_origins(origins))
    if isinstance(run.plan.architecture, FamilyConfig) and all(origin.source == FRESH for origin in origins):
        say("WARNING: all parameters are random, since init.checkpoint and the parts in config.init are empty")
    discriminator = None
    if run.plan.two_networks is not None:
        discriminator, origin = initial_discriminator(
            run.plan.two_networks.adversarial.discriminator, run.config.init.checkpoint, run.config.seed, run.plan.mesh
        )
        say(f"discriminator: {count(discriminator[0]):,} parameters, {origin}")
    return plan.new_state(params, discriminator), digests


def _config_text(config: ConfigDict) -> str:
    return config.to_json_best_effort(indent=2) + "\n"


def _changed_settings(file: epath.Path, config: ConfigDict) -> list[str]:
    """Fields whose value differs from that in a config.json, such as "train.learning_rate 2e-05 -> 0.001".

    Fields that one of both does not have are left out, since another version of this program may have written the file.
    """
    try:
        before = _flatten(json.loads(file.read_text()))
    except (OSError, ValueError, AttributeError):  # no run has been started completely, or it is no file of ours
        return []
    now = _flatten(json.loads(_config_text(config)))
    return [f"{name} {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]


def _flatten(fields: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _format_choices(config: ConfigDict, plan: Plan, remat: RematChoice | None, workers: int) -> str:
    """A line for each "auto" of the config that says what it means here."""
    lines = []
    if plan.mesh.size > 1 and AUTO in config.mesh.to_dict().values():
        axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
        lines.append(f"mesh auto: {axes}; {config.train.batch_size // row_shares(plan.mesh)} rows each")
    if remat is not None:
        lines.append(remat.describe())
    if AUTO in (config.data.workers, config.data.num_shards):
        processes = f"{workers} processes" if workers else "a thread"
        lines.append(f"data auto: {num_shards(config)} logical shards, read by {processes} on each host")
    return "\n".join(lines)


def _say_what_is_odd(
    config: ConfigDict, architecture: ModelConfig, tokenizer: Tokenizer | None, held_out: Stream | None
) -> None:
    """Names what works, but hardly as it was meant: another model's tokenizer, and actions with nothing to do."""
    if isinstance(architecture, FamilyConfig) and tokenizer is not None:
        known, rows = tokenizer.vocab_size, architecture.llama.vocab_size
        if 2 * known < rows:
            say(f"data.tokenizer has {known:,} tokens, but the model embeds {rows:,}: is it the model's own?")
    if config.validate.every_steps and held_out is None:
        say(f"validate.every_steps={config.validate.every_steps}, but data.held_out=0: nothing is validated")
    generates = isinstance(architecture, FamilyConfig) and "generate" in tasks(config)
    if config.sample.every_steps and generates and not config.sample.prompts:
        say(f"sample.every_steps={config.sample.every_steps}, but sample.prompts is empty: no images are generated")


def _require_origin(config: ConfigDict) -> None:
    """Raises UserError for a run that goes on from a model, if no field names one."""
    names = ("checkpoint", "siglip", "llm", "vq")
    if config.init.required and not any(config.init[name] for name in names):
        raise UserError(
            "config.init.checkpoint is empty, expected the folder of a model to go on from, or the workdir of an "
            "earlier stage; config.init.required=False starts from random weights"
        )


def _write_run(run: Run, architecture: ModelConfig, is_new: bool) -> None:
    """Writes the files that tell what the workdir holds. Called when nothing else can fail before the first step.

    Each start writes the same files again. Where that fails, the workdir stays readable.

    Args:
        is_new: Whether the run begins; it then replaces the VAE that an interrupted start may have left.
    """
    write_architecture(run.workdir, architecture)
    write_whole(run.workdir / CONFIG_FILE, _config_text(run.config))
    if run.tokenizer is not None:
        run.tokenizer.save(run.workdir / FILE_NAME)
    if run.vae is not None and (is_new or not (run.workdir / VAE_FOLDER).exists()):
        (run.workdir / VAE_FOLDER).rmtree(missing_ok=True)
        save_params(run.workdir / VAE_FOLDER, *run.vae)


def _require_same_tokenizer(path: epath.Path, tokenizer: Tokenizer) -> None:
    """Raises UserError when the model in the workdir was trained with other ids, before its file is overwritten."""
    if path.exists() and Tokenizer.from_file(path).backend.get_vocab() != tokenizer.backend.get_vocab():
        raise UserError(f"{path}: another vocabulary than that of config.data.tokenizer")
