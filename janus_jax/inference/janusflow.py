"""JanusFlow: engine and public API of models that generate images by rectified flow.

Letters: B prompts, G images per prompt, H W height and width of the latents, Z their channels.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.data.images import to_images
from janus_jax.errors import UserError
from janus_jax.inference.engine import Engine
from janus_jax.inference.flow_sampling import decode_latents, sample_latents
from janus_jax.inference.padding import round_up
from janus_jax.inference.pipeline import Pipeline
from janus_jax.inference.requests import FlowOptions, ImageRequest
from janus_jax.inference.sampling import image_keys
from janus_jax.models.config import JanusFlowConfig, VAEConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, build
from janus_jax.phases import phase
from janus_jax.sharding import MESH_AXES, to_devices, to_host
from janus_jax.weights.vae import require_vae

VAE_CHUNK = 4  # most images per device and VAE decoding call: bounds the memory of a call


class JanusFlowEngine(Engine):
    """Answers, and generates latents by guided rectified flow.

    Attributes:
        vae: config and parameters of the VAE that decodes latents to pixels, if there is one. All devices of a mesh
            hold it whole, and decode their part of the images.
    """

    config: JanusFlowConfig

    def __init__(
        self,
        config: JanusFlowConfig,
        params: Params,
        *args: Any,
        vae: tuple[VAEConfig, Params] | None = None,
        **options: Any,
    ):
        """Takes the arguments of `Engine` and the VAE. Without a VAE the engine answers and generates latents.

        Raises UserError when the VAE is of another kind than the model was trained with.
        """
        if vae is not None:
            require_vae(config, vae[0])
        super().__init__(config, params, *args, **options)
        self.vae = vae if vae is None or self.mesh is None else (vae[0], _everywhere(vae[1], self.mesh))

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Includes `<begin_of_image>`, whose place a learned vector takes."""
        return self.tokenizer.begin_of_image_id, self.tokenizer.image_id

    def generate(  # type: ignore[override]  # the options of the flow
        self,
        requests: Sequence[ImageRequest],
        num_images: int,
        *,
        cfg_weight: float = 2.0,
        num_steps: int = 30,
        solver: str = "euler",
        initial_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Latents [B, G, H, W, Z] float32.

        Args:
            initial_noise: float32 noise of the shape of the result, instead of noise from the keys of the samples.

        Raises UserError for images that do not fit the memory.
        """
        shape = latent_shape(self.config)
        if not requests:
            return np.zeros((0, num_images, *shape), np.float32)
        self.check_images(requests, num_images)
        num_prompts, images = self.padded_counts(len(requests), num_images)
        rows = [*requests, *[requests[-1]] * (num_prompts - len(requests))]
        prompts = self.pad([_without_last(row) for row in rows])
        if initial_noise is None:
            noise = normal_noise(image_keys(rows, images), shape)
        else:
            padding = ((0, num_prompts - len(requests)), (0, images - num_images), (0, 0), (0, 0), (0, 0))
            noise = jnp.asarray(np.pad(initial_noise, padding).reshape(-1, *shape))
        with self.on_mesh(), phase("generating latents"):
            latents = to_host(
                sample_latents(
                    self.model,
                    self.params,
                    prompts,
                    noise,
                    np.float32(cfg_weight),
                    num_steps=np.int32(num_steps),
                    solver=solver,
                )
            )
        return latents.reshape(num_prompts, images, *shape)[: len(requests), :num_images]

    def check_images(self, requests: Sequence[ImageRequest], num_images: int) -> None:
        num_prompts, images = self.padded_counts(len(requests), num_images)
        length = self.padded_length(max(len(_without_last(request)) for request in requests))
        tokens = self.config.image_tokens
        self.check_memory(
            {
                # The prompts and BOS as they are read, then one row per prompt and half of the guidance.
                f"{num_prompts} prompts": (3 * num_prompts + 1, length),
                f"{num_prompts * images} images": (2 * num_prompts * images, tokens),
            },
            (num_prompts + 1, length, length),
            (2 * num_prompts * images, tokens, length + tokens),
        )

    def decode(self, samples: np.ndarray) -> list[PIL.Image.Image]:
        """Decodes latents [images, H, W, Z] to images.

        Raises UserError for latents of another size, or without a VAE, unless the latents are pixels.
        """
        check_can_decode(self.config, self.vae is not None)
        latents, shape = np.asarray(samples), latent_shape(self.config)
        if latents.shape[1:] != shape:
            raise UserError(f"latents of shape {latents.shape}, expected [images, {', '.join(map(str, shape))}]")
        if self.vae is None:
            return to_images(latents)
        config, params = self.vae
        model = build(config, Execution(dtype=self.model.execution.dtype))
        images, devices = [], 1 if self.mesh is None else self.mesh.size
        most = VAE_CHUNK * devices
        size = min(round_up(len(latents), devices), most)
        with phase("decoding images", len(latents), " images") as advance:
            for start in range(0, len(latents), most):
                chunk = latents[start : start + most]
                padded: Any = np.pad(chunk, ((0, size - len(chunk)), (0, 0), (0, 0), (0, 0)))  # one compiled shape
                if self.mesh is not None:
                    padded = to_devices(padded, NamedSharding(self.mesh, PartitionSpec(MESH_AXES)))
                images += to_images(to_host(decode_latents(model, params, padded)))[: len(chunk)]
                advance(len(chunk))
        return images


class JanusFlowPipeline(Pipeline):
    """A JanusFlow model that answers questions and generates images. Make one with `janus_jax.from_pretrained`."""

    engine: JanusFlowEngine
    config: JanusFlowConfig

    def __init__(self, *args: Any, **options: Any):
        """Takes the arguments of `JanusFlowEngine`, and makes one."""
        super().__init__(JanusFlowEngine(*args, **options))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(H, W, Z) of one image."""
        return latent_shape(self.config)

    def generate_images(
        self,
        prompt: str | Sequence[str],
        num_images: int = 1,
        *,
        initial_noise: np.ndarray | None = None,
        **options: Unpack[FlowOptions],
    ) -> list[PIL.Image.Image]:
        """Generates `num_images` images of a prompt, or of each prompt of a list in order.

        Args:
            initial_noise: floats in the shape of the latents, instead of noise from the seed.
            options: cfg_weight, num_steps, solver, seed and prompt_numbers; see `FlowOptions`.
        """
        check_can_decode(self.config, self.engine.vae is not None)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return self.decode_latents(self.generate_latents(prompts, num_images, initial_noise=initial_noise, **options))

    def generate_latents(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        initial_noise: np.ndarray | None = None,
        **options: Unpack[FlowOptions],
    ) -> np.ndarray:
        """Latents [len(prompts) * num_images, H, W, Z] float32, which a VAE decodes; the images of a prompt together.

        Image i of a prompt depends on the prompt, its seed and number, and i alone, not on the batch; rounding aside,
        which may differ between batches of other shapes.

        Args:
            initial_noise, options: those of `generate_images`.

        Raises:
            UserError: empty prompt, bad option, noise of another shape, a prompt that does not fit the context, or
                images that do not fit the memory.
        """
        requests, decoding = self.engine.reader.latents(prompts, num_images, **options)
        shape = self.latent_shape
        if initial_noise is not None:
            noise = check_noise(initial_noise, (len(prompts) * num_images, *shape))
            initial_noise = noise.reshape(len(prompts), num_images, *shape)
        latents = self.engine.generate(requests, num_images, initial_noise=initial_noise, **decoding)
        return latents.reshape(-1, *shape)

    def decode_latents(self, latents: np.ndarray) -> list[PIL.Image.Image]:
        """Decodes latents [images, H, W, Z] to images.

        Raises UserError for latents of another size, or without a VAE, unless the latents are pixels.
        """
        return self.engine.decode(latents)

    def save_pretrained(self, folder: epath.PathLike, format: str = "orbax", dtype: DTypeLike | None = None) -> None:
        """As `Pipeline.save_pretrained`; a folder of our own format also holds the VAE."""
        self._write(folder, format, dtype, self.engine.vae if format == "orbax" else None)


def _everywhere(params: Params, mesh: Mesh) -> Params:
    """Parameters that every device of the mesh holds whole."""
    return jax.tree.map(lambda leaf: to_devices(leaf, NamedSharding(mesh, PartitionSpec())), params)


def _without_last(request: ImageRequest) -> list[int]:
    """The prompt without `<begin_of_image>`, whose place the time token takes."""
    return request.prompt[:-1]


def latent_shape(config: JanusFlowConfig) -> tuple[int, int, int]:
    """(H, W, Z) of one image."""
    return config.uvit.latent_size, config.uvit.latent_size, config.uvit.latent_channels


def normal_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [images, H, W, Z] of keys [images]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def check_can_decode(config: JanusFlowConfig, has_vae: bool) -> None:
    """Raises UserError if latents cannot become images: there is no VAE, and the latents are not pixels."""
    if not has_vae and not config.latents_are_pixels:
        raise UserError(
            "this JanusFlow model has no VAE to decode images with: give one to from_pretrained, or --vae, or convert "
            "the model together with it"
        )


def check_noise(noise: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The noise in float32. Raises UserError for another shape, integers, or values that are not finite."""
    noise = np.asarray(noise)
    if noise.shape != shape or noise.dtype.kind != "f":
        raise UserError(
            f"initial_noise of shape {noise.shape} and type {noise.dtype}, expected floats of shape {shape}"
        )
    with np.errstate(over="ignore"):
        noise = noise.astype(np.float32)
    if not np.isfinite(noise).all():
        raise UserError("initial_noise has values that are not finite in float32")
    return noise
