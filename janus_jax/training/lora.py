"""The adapters of a run, as `config.lora` describes them."""

from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.models.config import FamilyConfig, ModelConfig
from janus_jax.models.lora import INT8, Lora, LoraRule, adapter_rules, is_beside, is_trained_adapter
from janus_jax.models.params import Params, abstract_params, flatten
from janus_jax.storage import absolute
from janus_jax.training.freezing import trainable_mask
from janus_jax.weights.lora_run import RECORD_FILE, LoraRecord, read_record
from janus_jax.weights.pretrained_parts import PARTS
from janus_jax.weights.quantization import is_quantized

BASE_DTYPES = ("float32", "bfloat16", INT8)
MAX_RANK = 4096


def lora_of(config: ConfigDict, architecture: ModelConfig) -> Lora | None:
    """The adapters of a run; None for a run without.

    Raises UserError for a rule that cannot work, for a weight matrix that has an adapter and is trained in full, and
    for a base that is not one saved model.
    """
    if not config.lora.rules:
        return None
    rules = tuple(_rule(rule) for rule in config.lora.rules)
    if not isinstance(architecture, FamilyConfig):
        raise UserError(f"config.lora.rules: {config.model} is an image tokenizer, expected a Janus or JanusFlow")
    if config.lora.base_dtype not in BASE_DTYPES:
        raise UserError(f"config.lora.base_dtype={config.lora.base_dtype!r} is not one of {', '.join(BASE_DTYPES)}")
    _require_one_base(config)
    params = abstract_params(architecture)
    trained = trainable_mask(params, config.trainable)
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    frozen = tuple((path, _base_dtype(path, config.lora.base_dtype)) for path in shapes if not trained[path])
    lora = Lora(rules, config.lora.rslora, config.lora.dropout, config.seed, frozen)
    for path, rule in adapter_rules(shapes, lora).items():
        if trained[path]:
            raise UserError(
                f"config.lora.rules: {rule.pattern!r} adapts {path}, which config.trainable trains in full: "
                'expected config.trainable=((".*", False),), or rules for other matrices'
            )
    return lora


def lora_mask(params: Params, trained: Mapping[str, bool]) -> dict[str, bool]:
    """Path -> whether it is trained, for the parameters of a run with adapters.

    Args:
        params: the parameters of the run.
        trained: the mask of the parameters of the model alone.
    """
    return {path: is_trained_adapter(path) if is_beside(path) else trained[path] for path in flatten(params)}


def lora_record(config: ConfigDict, architecture: ModelConfig, lora: Lora, mask: Mapping[str, bool]) -> LoraRecord:
    """What the workdir of a run keeps about its adapters, still without the digests of their base.

    Args:
        mask: path of a parameter of the run -> whether it is trained.
    """
    trained = [path for path, is_trained in mask.items() if is_trained]
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(architecture)).items()}
    scales = {path: lora.scale(rule) for path, rule in adapter_rules(shapes, lora).items()}
    return LoraRecord(
        base=str(absolute(config.init.checkpoint)),
        rules=[list(rule) for rule in lora.rules],
        rslora=lora.rslora,
        trained=[path for path in trained if not is_trained_adapter(path)],
        scales=scales,
        digests={},
    )


def require_same_adapters(workdir: epath.Path, record: LoraRecord | None) -> None:
    """Raises UserError when the checkpoints of a workdir hold other adapters than those of a run, or none.

    Args:
        record: that of the run; None for a run without adapters. Its base and digests are not compared.
    """
    saved = read_record(workdir) if (workdir / RECORD_FILE).exists() else None
    if (saved is None) != (record is None):
        raise UserError(
            f"config.lora.rules are {'empty' if record is None else 'given'}, but the checkpoints in {workdir} hold "
            f"{'no ' if saved is None else ''}adapters: expected the rules of the run, or a new workdir"
        )
    if saved is None or record is None:
        return
    for field, name in (("rules", "lora.rules"), ("rslora", "lora.rslora"), ("trained", "trainable")):
        before, now = getattr(saved, field), getattr(record, field)
        if before != now:
            raise UserError(
                f"config.{name}: the checkpoints in {workdir} have {field} {before}, now they are {now}: expected the "
                "value of the run, or a new workdir"
            )


def _rule(rule: object) -> LoraRule:
    if isinstance(rule, Sequence) and len(rule) == 3:
        pattern, rank, alpha = rule
        numbers = type(rank) is int and type(alpha) in (int, float)
        if isinstance(pattern, str) and numbers and 1 <= rank <= MAX_RANK and 0 < alpha < 1e6:
            return LoraRule(pattern, rank, float(alpha))
    raise UserError(
        f"config.lora.rules: {rule!r}, expected (regular expression, rank from 1 to {MAX_RANK}, alpha above 0)"
    )


def _require_one_base(config: ConfigDict) -> None:
    parts = [part for part in PARTS if config.init[part]]
    if parts:
        raise UserError(
            f"config.init.{parts[0]}={config.init[parts[0]]!r}: adapters need one whole model as their base, expected "
            "it in config.init.checkpoint alone"
        )
    if not config.init.checkpoint:
        raise UserError("config.init.checkpoint is empty, expected the folder of the model that gets the adapters")


def _base_dtype(path: str, base_dtype: str) -> str:
    """The dtype of a frozen parameter. The image tokenizer stays float32, since rounding would change its codes."""
    if path.startswith("vq/"):
        return "float32"
    if base_dtype != INT8:
        return base_dtype
    return INT8 if is_quantized(path) else "bfloat16"
