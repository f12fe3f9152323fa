"""Opens a model folder of any layout; its files tell which one it is."""

from etils import epath

from janus_jax.errors import UserError
from janus_jax.weights.foreign import open_foreign_model
from janus_jax.weights.json_fields import CONFIG_FILE
from janus_jax.weights.locations import existing_path
from janus_jax.weights.lora_run import RECORD_FILE, open_lora_run, open_trained, read_record
from janus_jax.weights.native import ARCHITECTURE_FILE, model_with, open_native_model
from janus_jax.weights.reader import ModelReader


def open_model(folder: epath.PathLike, ema: bool = False) -> ModelReader:
    """Opens a model of the Janus family without reading any tensor.

    Args:
        folder: a model folder or training workdir of janus_jax, or a Hugging Face or DeepSeek folder. The workdir of a
            run that trains adapters is opened with its base, into which they are merged.
        ema: opens the average of the parameters over the steps of a training workdir instead of the parameters.

    Raises:
        UserError: there is no model, it is damaged, or its parts (config, tensors, tokenizer, preprocessor) do not fit
            each other.
    """
    folder = existing_path(folder)
    if (folder / RECORD_FILE).exists():
        record = read_record(folder)
        trained = model_with(folder, open_trained(folder, record, ema))
        return open_lora_run(folder, record, open_model(record.base), trained)
    if (folder / ARCHITECTURE_FILE).exists():
        return open_native_model(folder, ema)
    if ema:
        raise UserError(f"{folder}: not a training workdir, so it keeps no average of its parameters")
    if (folder / CONFIG_FILE).exists():
        return open_foreign_model(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: a file, expected the model folder that holds it")
    raise UserError(f"{folder}: not a model folder (neither {ARCHITECTURE_FILE} nor {CONFIG_FILE} is there)")
