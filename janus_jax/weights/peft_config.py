"""`adapter_config.json` of PEFT (0.21): which adapters a folder says that it holds.

The tensors in the file count. The config gives what they do not tell, the scale, and is refused where it contradicts
them, or where a field asks for a function that we do not compute.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.weights.json_fields import Fields, read_fields
from janus_jax.weights.strangers_patterns import matching_names

CONFIG_FILE = "adapter_config.json"
MAX_RANK = 1 << 16
_MAX_PATTERN = 4096  # characters of a regular expression
# Fields that do not change what a stored adapter computes.
_HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_config", "megatron_core"),
    *("qalora_group_size", "ensure_weight_tying", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
_READ = {
    *("peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "bias", "fan_in_fan_out", "init_lora_weights"),
}
_HARMLESS_INIT = (True, False, "gaussian", "eva", "orthogonal")  # others change the weights of the base


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """What `adapter_config.json` says about adapters."""

    fields: Fields
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]  # regular expression for the end of a module's name -> rank
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    targets: str | tuple[str, ...]  # a regular expression, or ends of names; "all-linear"
    saved: tuple[str, ...]  # ends of the names of modules that are stored whole
    # Regular expression -> the modules of the model that it matches whole; `for_modules` finds them.
    matches: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    def for_modules(self, modules: Iterable[str]) -> "PeftConfig":
        """The config for a model that has these modules. Raises UserError when its patterns take too long to match."""
        patterns = {_at_end(name) for name in (*self.rank_pattern, *self.alpha_pattern)}
        if isinstance(self.targets, str) and self.targets != "all-linear":
            patterns.add(self.targets)
        matches = matching_names(sorted(patterns), sorted(modules), str(self.fields.path))
        return dataclasses.replace(self, matches=matches)

    def scale(self, module: str, rank: int) -> float:
        """Factor of the adapter of a module. Raises UserError when its tensors have another rank than the config."""
        expected = self.rank_pattern.get(self._matching(self.rank_pattern, module), self.rank)
        if rank != expected:
            raise UserError(f"{self.fields.path}: {module} has rank {expected}, but its tensors have rank {rank}")
        alpha = self.alpha_pattern.get(self._matching(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets_module(self, module: str) -> bool:
        """Whether PEFT gives a module an adapter."""
        if self.targets == "all-linear":
            return True
        if isinstance(self.targets, str):
            return module in self.matches[self.targets]
        return _ends_with(module, self.targets)

    def saves_module(self, module: str) -> bool:
        """Whether PEFT stores a module whole, on its own or as a part of a larger one."""
        names = module.split(".")
        return any(_ends_with(".".join(names[:end]), self.saved) for end in range(1, len(names) + 1))

    def _matching(self, patterns: Mapping[str, Any], module: str) -> str:
        """The first pattern that matches the end of a name, as PEFT finds it; the name itself where none does."""
        return next((key for key in patterns if module in self.matches[_at_end(key)]), module)

    @property
    def names_all_modules(self) -> bool:
        """Whether the config alone tells which modules have adapters."""
        others = ("exclude_modules", "layers_to_transform", "layers_pattern")
        return self.targets != "all-linear" and not any(self.fields.values.get(name) for name in others)


def read_peft_config(folder: epath.Path) -> PeftConfig:
    """Reads `adapter_config.json`. Raises UserError for a damaged file, and for an adapter of an unknown kind."""
    fields = read_fields(folder / CONFIG_FILE)
    fields.choice("peft_type", ("LORA",))
    for name, value in fields.values.items():
        if name not in _HARMLESS | _READ and value not in (False, {}, []):
            raise fields.wrong(name, "no such field, since it changes the function in a way that is not read here")
    fields.only(bias="none", fan_in_fan_out=False)
    if fields.values.get("init_lora_weights", True) not in _HARMLESS_INIT:
        raise fields.wrong(
            "init_lora_weights", f"one of {', '.join(map(str, _HARMLESS_INIT))}: the base stays as it is"
        )
    return PeftConfig(
        fields=fields,
        rank=_rank(fields, "r", fields.values.get("r")),
        alpha=_alpha(fields, "lora_alpha", fields.values.get("lora_alpha")),
        rank_pattern={name: _rank(fields, "rank_pattern", x) for name, x in _patterns(fields, "rank_pattern")},
        alpha_pattern={name: _alpha(fields, "alpha_pattern", x) for name, x in _patterns(fields, "alpha_pattern")},
        rslora=_flag(fields, "use_rslora"),
        dora=_flag(fields, "use_dora"),
        targets=_targets(fields),
        saved=_names(fields, "modules_to_save"),
    )


def config_text(
    base: str,
    targets: list[str],
    saved: list[str],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    *,
    rslora: bool = False,
    dora: bool = False,
) -> str:
    """The content of `adapter_config.json`.

    Args:
        ranks, alphas: of each module in `targets`. The commonest values become the default, the others patterns.
    """
    rank, alpha = _commonest(ranks.values(), 1), _commonest(alphas.values(), 1.0)
    content = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "modules_to_save": saved or None,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": rslora,
        "use_dora": dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return json.dumps(content, indent=2) + "\n"


def _at_end(pattern: str) -> str:
    """The regular expression of the whole name of a module whose end matches a pattern."""
    return rf"(.*\.)?({pattern})"


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _rank(fields: Fields, name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise fields.wrong(name, f"ranks from 1 to {MAX_RANK}")
    return value


def _alpha(fields: Fields, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e9:
        raise fields.wrong(name, "numbers from 0")
    return float(value)


def _flag(fields: Fields, name: str) -> bool:
    value = fields.values.get(name, False)
    if not isinstance(value, bool):
        raise fields.wrong(name, "true or false")
    return value


def _patterns(fields: Fields, name: str) -> list[tuple[str, Any]]:
    patterns = fields.object(name).values
    for pattern in patterns:
        _check_pattern(fields, name, pattern)
    return list(patterns.items())


def _check_pattern(fields: Fields, name: str, pattern: str) -> None:
    try:
        too_long = len(pattern) > _MAX_PATTERN
        re.compile(_at_end(pattern) if name != "target_modules" else pattern)
    except re.error as error:
        raise fields.wrong(name, f"regular expressions ({error})") from error
    if too_long:
        raise fields.wrong(name, f"regular expressions of at most {_MAX_PATTERN} characters")


def _targets(fields: Fields) -> str | tuple[str, ...]:
    value = fields.values.get("target_modules")
    if isinstance(value, str):
        _check_pattern(fields, "target_modules", value)
        return value
    return _names(fields, "target_modules")


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.values.get(name, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise fields.wrong(name, "a list of names")
    return tuple(value)


def _commonest(values: Iterable[Any], default: Any) -> Any:
    found = list(values)
    return max(found, key=found.count) if found else default
