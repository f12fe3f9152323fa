"""Everything that a run compiles, without its data.

`launch.train` uses it on devices and `launch.compile_check` without any. A plan takes no device memory: parameters and
moments are abstract, with their shardings.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from janus_jax.batches import FlowBatch, ImageBatch, PackedBatch
from janus_jax.compiler_options import CPU_BUFFER_BYTES
from janus_jax.data.mixture import check_schedule, ever_positive
from janus_jax.data.records import TASKS
from janus_jax.errors import UserError
from janus_jax.models.config import (
    CodeModelConfig,
    FamilyConfig,
    ImageTokenizerConfig,
    ModelConfig,
    SemanticTokenizerConfig,
    VQConfig,
)
from janus_jax.models.execution import Execution
from janus_jax.models.lora import Lora, is_trained_adapter
from janus_jax.models.params import Params, abstract_params, flatten
from janus_jax.models.patch_discriminator import NormStatistics
from janus_jax.models.presets import LOSS_NETWORKS, LPIPS, LPIPS_VGG
from janus_jax.sharding import (
    ROW_AXES,
    GatheredWeights,
    auto_mesh,
    batch_sharding,
    check_heads,
    make_mesh,
    param_shardings,
    row_shares,
)
from janus_jax.training.adversarial_step import make_adversarial_step
from janus_jax.training.architecture import model_config
from janus_jax.training.flops import image_tokenizer_flops, step_flops
from janus_jax.training.freezing import trainable_mask
from janus_jax.training.lora import lora_mask, lora_of
from janus_jax.training.loss_networks import abstract_discriminator, abstract_loss_networks
from janus_jax.training.objectives.adversarial import AdversarialConfig, adversarial_config
from janus_jax.training.objectives.base import Objective
from janus_jax.training.objectives.factory import make_objective
from janus_jax.training.objectives.vq import TokenizerLoss, tokenizer_loss
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.setup import check_config, execution, generation_size
from janus_jax.training.train_state import TrainState, create_state, state_shardings
from janus_jax.training.train_step import make_train_step, make_validation_step

Discriminator = tuple[Params, NormStatistics]


class TwoNetworks(NamedTuple):
    """What a run needs to train an image tokenizer against a discriminator."""

    tokenizer_loss: TokenizerLoss
    adversarial: AdversarialConfig


class Plan(NamedTuple):
    """What a config means on some devices."""

    architecture: ModelConfig
    execution: Execution
    mesh: Mesh
    rows: NamedSharding  # sharding of every field of a batch
    mask: dict[str, bool]  # path of a parameter -> whether it is trained
    optimizer: optax.GradientTransformation
    objective: Objective
    state: TrainState  # abstract, with shardings
    shardings: TrainState
    micro_batches: int
    ema: float
    program: str  # name of the options with which the compiler gets the programs over the state
    two_networks: TwoNetworks | None = None  # None: the run trains no discriminator
    lora: Lora | None = None  # None: the run trains no adapters
    validation_objective: Objective | None = None  # None: that of the training step

    def make_step(self) -> Any:
        """The training step. It is compiled by its first call, or by `lower(plan.state, batch).compile()`."""
        common: tuple[Any, ...] = (self.optimizer, self.shardings, self.mesh, self.execution.weights)
        common += (self.micro_batches, self.ema, self.program)
        if self.two_networks is not None:
            return make_adversarial_step(self.objective, *self.two_networks, *common)
        common += (self.lora,)
        return make_train_step(self.objective, *common)

    def make_validation_step(self) -> Any:
        """The function that computes the metrics of held-out rows; see `make_validation_step`."""
        return make_validation_step(
            self.validation_objective or self.objective,
            self.shardings,
            self.mesh,
            self.execution.weights,
            self.micro_batches,
            self.program,
        )

    def new_state(self, params: Params, discriminator: Discriminator | None = None) -> TrainState:
        """The state before the first step, on the devices, without the networks that only the loss uses.

        It takes over the arrays of `params`, which are donated.

        Args:
            discriminator: parameters and running statistics of the discriminator, where the run trains one.
        """
        create = functools.partial(create_state, mask=self.mask, optimizer=self.optimizer, ema=self.ema > 0)
        shardings = self.shardings._replace(loss_networks=None)
        return jax.jit(create, out_shardings=shardings, donate_argnums=0)(params, discriminator=discriminator)


def make_plan(config: ConfigDict, devices: Sequence[Any] | None = None) -> Plan:
    """Resolves a config against devices. By default these are all devices of all processes.

    A policy that is "auto" is the one that takes the least memory. `auto_remat.plan_with_remat` chooses a faster one.

    Raises UserError for a config that cannot work on this many devices.
    """
    architecture = model_config(config)
    check_config(config, architecture)
    devices = jax.devices() if devices is None else devices
    kv_heads = architecture.llama.num_kv_heads if isinstance(architecture, FamilyConfig) else None
    mesh = make_mesh(auto_mesh(config.mesh, devices, config.train.batch_size, kv_heads), devices)
    rows = batch_sharding(mesh, config.train.batch_size)
    micro_batches, device_rows = config.train.micro_batches, config.train.batch_size // row_shares(mesh)
    if device_rows % micro_batches:
        raise UserError(f"train.micro_batches={micro_batches} does not divide the {device_rows} rows of a device")
    optimizer = make_optimizer(config.train)
    lora = lora_of(config, architecture)
    params = abstract_params(architecture, lora)
    mask = trainable_mask(abstract_params(architecture), config.trainable)
    if lora is not None:
        mask = lora_mask(params, mask)
    run = execution(config, architecture, mesh.devices.flat[0].platform)
    if run.attention == "flash" and isinstance(architecture, FamilyConfig):
        check_heads(architecture, mesh)
    if mesh.shape["fsdp"] > 1:
        specs = {path: sharding.spec for path, sharding in flatten(param_shardings(architecture, mesh, lora)).items()}
        # Rounding would change the codes of images.
        exact = "vq" if isinstance(architecture, CodeModelConfig) else ""
        run = dataclasses.replace(run, weights=GatheredWeights(run.dtype, specs, exact))
    objective = make_objective(architecture, run, config.loss, computed_tasks(config, tasks(config)), ROW_AXES)
    validated = validation_tasks(config)
    validation_objective = None
    if validated != tasks(config):
        computed = computed_tasks(config, validated)
        validation_objective = make_objective(architecture, run, config.loss, computed, ROW_AXES)
    two_networks = _two_networks(config, architecture, run, device_rows // micro_batches, mask)
    discriminator = abstract_discriminator(two_networks.adversarial.discriminator) if two_networks else None
    networks = abstract_loss_networks(config, architecture, run.dtype)
    ema = config.train.ema
    abstract = jax.eval_shape(
        lambda *parts: create_state(parts[0], mask, optimizer, ema > 0, *parts[1:]), params, discriminator, networks
    )
    shardings = state_shardings(architecture, mask, optimizer, abstract, mesh, lora)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
    common = (architecture, run, mesh, rows, mask, optimizer, objective, state, shardings, micro_batches, ema)
    program = _program(config, architecture, lora, device_rows // micro_batches)
    return Plan(*common, program, two_networks, lora, validation_objective)


def abstract_batch(config: ConfigDict, plan: Plan) -> PackedBatch | FlowBatch | ImageBatch:
    """Shapes and shardings of the batch that a step takes."""
    data, rows = config.data, config.train.batch_size

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=plan.rows)

    def images(slots: int, size: int) -> jax.ShapeDtypeStruct:
        return array(jnp.uint8, slots, size, size, 3)

    architecture = plan.architecture
    if not isinstance(architecture, FamilyConfig):
        assert isinstance(architecture, ImageTokenizerConfig)
        size = data.image_size or architecture.image_size
        return ImageBatch(pixels=array(jnp.uint8, size, size, 3))
    length = data.row_length
    batch = PackedBatch(
        tokens=array(jnp.int32, length),
        modality=array(jnp.int8, length),
        segment_ids=array(jnp.int32, length),
        positions=array(jnp.int32, length),
        targets=array(jnp.int32, length),
        text_weights=array(jnp.float32, length),
        image_weights=array(jnp.float32, length),
        und_pixels=images(data.und_slots, architecture.understanding.image_size),
        gen_pixels=None if data.stored_codes else images(data.gen_slots, generation_size(architecture)),
    )
    if isinstance(architecture, CodeModelConfig):
        return batch
    uvit = architecture.uvit
    latents = array(jnp.float32, data.gen_slots, uvit.latent_size, uvit.latent_size, uvit.latent_channels)
    return FlowBatch(batch, latents, latents, time=array(jnp.float32, data.gen_slots))


def _program(config: ConfigDict, architecture: ModelConfig, lora: Lora | None, rows: int) -> str:
    """Name of the compiler's options. `rows` is the number on a device in a micro-batch."""
    if not isinstance(architecture, ImageTokenizerConfig):
        return "adapter_step" if lora else "train_step"
    vq = architecture if isinstance(architecture, VQConfig) else architecture.vq
    size = config.data.image_size or architecture.image_size
    channels = max(vq.base_channels, LPIPS_VGG.widths[0])  # of the arrays with the size of the images
    largest = 2 * rows * size * size * channels * 4  # float32; images and reconstructions
    return "small_tokenizer_step" if largest <= CPU_BUFFER_BYTES else "tokenizer_step"


def _two_networks(
    config: ConfigDict, architecture: ModelConfig, run: Execution, images: int, mask: dict[str, bool]
) -> TwoNetworks | None:
    """What an adversarial loss needs; None for a run without. `images` is the number on a device in a micro-batch."""
    if not isinstance(architecture, ImageTokenizerConfig) or not config.loss.adversarial_weight:
        return None
    last = f"{'vq/' * isinstance(architecture, SemanticTokenizerConfig)}decoder/conv_out/kernel"
    if config.loss.adaptive_weight and not mask[last]:
        raise UserError(f"config.loss.adaptive_weight=True, but config.trainable freezes {last}")
    size = config.data.image_size or architecture.image_size
    adversarial = adversarial_config(config.loss, size, images, ROW_AXES, run)
    return TwoNetworks(tokenizer_loss(architecture, run, config.loss, ROW_AXES), adversarial)


def model_flops(config: ConfigDict, plan: Plan) -> float | None:
    """Floating-point operations that one step needs, on all devices together; None for models that are not counted."""
    if isinstance(plan.architecture, ImageTokenizerConfig):
        if not all(plan.mask.values()):
            return None
        discriminator = plan.two_networks.adversarial.discriminator if plan.two_networks else None
        lpips = LOSS_NETWORKS[LPIPS] if config.loss.perceptual_weight else None
        size = config.data.image_size or plan.architecture.image_size
        return image_tokenizer_flops(plan.architecture, config.train.batch_size, size, discriminator, lpips)
    adapters = {path for path in plan.mask if is_trained_adapter(path)}
    adapted = {path.split("/")[0] for path in adapters}
    trained = {path.split("/")[0] for path, is_trained in plan.mask.items() if is_trained and path not in adapters}
    data = config.data
    rows = config.train.batch_size
    sizes = (rows, data.row_length, data.und_slots, data.gen_slots)
    computed = computed_tasks(config, tasks(config))
    return step_flops(plan.architecture, trained, computed, *sizes, adapted=adapted)


def tasks(config: ConfigDict) -> tuple[str, ...]:
    """The tasks that have a share of the data at any step of the run."""
    ratio = config.data.ratio.items()
    return tuple(task for task, share in ratio if ever_positive(check_schedule(f"data.ratio.{task}", share)))


def computed_tasks(config: ConfigDict, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Tasks whose parts of the model are computed: condition images are also read as images to understand are."""
    if config.data.condition_images and "generate" in tasks and "understand" not in tasks:
        return ("understand", *tasks)
    return tasks


def validation_tasks(config: ConfigDict) -> tuple[str, ...]:
    """The tasks whose held-out records are evaluated. Raises UserError for an unknown task."""
    named = config.validate.tasks
    if not named:
        return tasks(config)
    if isinstance(named, str) or not set(named) <= set(TASKS):
        raise UserError(f"config.validate.tasks={named!r}, expected a tuple of some of {', '.join(TASKS)}")
    return tuple(task for task in config.data.ratio if task in named)
