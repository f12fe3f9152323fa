"""Adapters in `launch.convert`: merged into the model that is read, or written as a folder of PEFT."""

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

from janus_jax.errors import UserError
from janus_jax.models.config import JanusFlowConfig
from janus_jax.storage import absolute

if TYPE_CHECKING:
    from janus_jax.weights.reader import ModelReader

ADAPTER = flags.DEFINE_string("adapter", None, "Folder of PEFT with an adapter of the model in --input.")
NAMES = flags.DEFINE_enum(
    "names",
    None,
    ["hf", "deepseek"],
    "With --to=peft: whose names of modules. The default is hf, transformers' names, and deepseek for JanusFlow.",
)


def merged(model: "ModelReader") -> "ModelReader":
    """The model with the adapter of --adapter merged into it, if there is one."""
    if NAMES.value:
        raise UserError(f"--names={NAMES.value} means nothing without --to=peft")
    if not ADAPTER.value:
        return model
    from janus_jax.weights import peft
    from janus_jax.weights.adapter import merged_model

    together = merged_model(model, peft.read_adapter(ADAPTER.value, model))
    return dataclasses.replace(together, layout=f"{model.layout} with an adapter")


def export(source: str, output: str, ema: bool) -> None:
    """Writes a folder of PEFT: the adapters of a run, or those of --adapter under other names.

    Args:
        source: workdir of a run with adapters; with --adapter, the model that it belongs to.
        ema: writes the average of the adapters over the steps of the run.

    Raises:
        UserError: there are no adapters, or they cannot be written.
    """
    from janus_jax.weights import peft
    from janus_jax.weights.adapter import parameter_count
    from janus_jax.weights.lora_run import RECORD_FILE, adapter_of_run, open_trained, read_record
    from janus_jax.weights.open_model import open_model

    for name in ("dtype", "vae", "dry_run", "verify"):
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} means nothing with --to=peft")
    folder = absolute(source)
    model = open_model(folder, ema)
    names = NAMES.value or ("deepseek" if isinstance(model.config, JanusFlowConfig) else "hf")
    if ADAPTER.value:
        adapter, base, rslora = peft.read_adapter(ADAPTER.value, model), source, False
    elif (folder / RECORD_FILE).exists():
        record = read_record(folder)
        adapter, base, rslora = adapter_of_run(open_trained(folder, record, ema), record), record.base, record.rslora
    else:
        raise UserError(f"--to=peft: {source} is no run with adapters, expected one, or --adapter")
    peft.write_adapter(output, adapter, model, base, names, rslora)
    print(f"wrote {output}: {parameter_count(adapter):,} parameters of adapters of {base}")
