"""A JanusFlow model with its tokenizer and its VAE."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from jax.typing import DTypeLike

from janus_jax.data.images import to_images
from janus_jax.errors import UserError
from janus_jax.inference.flow_sampling import decode_latents, sample_latents
from janus_jax.inference.pipeline import Pipeline
from janus_jax.models.config import JanusFlowConfig, VAEConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, build
from janus_jax.weights.vae import require_vae

VAE_CHUNK = 4  # most images per VAE decoding call: bounds its memory


class JanusFlowPipeline(Pipeline):
    """A JanusFlow model ready to be asked and to draw. Make one with `janus_jax.from_pretrained`."""

    config: JanusFlowConfig

    def __init__(
        self,
        config: JanusFlowConfig,
        params: Params,
        *args: Any,
        vae: tuple[VAEConfig, Params] | None = None,
        **options: Any,
    ):
        """Arguments of `Pipeline`, and the VAE; without one the model answers and makes latents.

        Raises UserError when the VAE is of another kind than the model was trained with.
        """
        if vae is not None:
            require_vae(config, vae[0])
        super().__init__(config, params, *args, **options)
        self._vae = vae

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return latent_shape(self.config)

    def generate_images(
        self, prompt: str | Sequence[str], num_images: int = 1, **options: Any
    ) -> list[PIL.Image.Image]:
        """Draws `num_images` images of a prompt (of each of a list, in order); options of `generate_latents`."""
        require_drawable(self.config, self._vae is not None)
        return self.draw(self.generate_latents([prompt] if isinstance(prompt, str) else prompt, num_images, **options))

    def generate_latents(
        self,
        prompts: Sequence[str],
        num_images: int,
        *,
        cfg_weight: float = 2.0,
        num_steps: int = 30,
        solver: str = "euler",
        seed: int = 0,
        initial_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Latents [len(prompts) * num_images, H, W, Z] float32 before the VAE, the images of a prompt together.

        Image i of a prompt depends on the seed, i and the prompt alone, not on the batch it is drawn in; but for
        rounding.

        Args:
            num_steps: of the solver; the paper's figures are for 30.
            solver: "euler" (the paper's) or "heun", two passes through the model per step.
            initial_noise: in the shape of the result, instead of noise from the seed.

        Raises:
            UserError: empty prompt, bad option, noise of another shape, a prompt that does not fit the context, or
                images that do not fit the memory.
        """
        ids = self._requests.latents(
            prompts, num_images, cfg_weight=cfg_weight, num_steps=num_steps, solver=solver, seed=seed
        )
        shape = (len(prompts) * num_images, *self.latent_shape)
        if initial_noise is not None:
            initial_noise = check_noise(initial_noise, shape)
        if not prompts:
            return np.zeros(shape, np.float32)
        rows, drawn = self._drawn(len(prompts), num_images)
        ids += [ids[-1]] * (rows - len(prompts))
        # The time token takes the place of `<begin_of_image>`.
        padded = self._pad([prompt[:-1] for prompt in ids])
        length, tokens = padded.tokens.shape[1], self.config.image_tokens
        self._check_memory(
            {
                f"{rows} prompts": (3 * rows + 1, length),  # as read, then for both halves of the guidance
                f"{rows * drawn} images": (2 * rows * drawn, tokens),
            },
            (rows + 1, length, length),
            (2 * rows * drawn, tokens, length + tokens),
        )
        noise = self._noise(len(prompts), num_images, seed) if initial_noise is None else initial_noise
        by_prompt = jnp.reshape(noise, (len(prompts), num_images, *self.latent_shape))
        spare = ((0, rows - len(prompts)), (0, drawn - num_images), (0, 0), (0, 0), (0, 0))
        with self._on_mesh():
            latents = sample_latents(
                self._model,
                self.params,
                padded,
                jnp.pad(by_prompt, spare).reshape(-1, *self.latent_shape),
                jnp.float32(cfg_weight),
                num_steps=num_steps,
                solver=solver,
            )
        latents = np.asarray(latents).reshape(rows, drawn, *self.latent_shape)
        return latents[: len(prompts), :num_images].reshape(shape)

    def draw(self, latents: np.ndarray) -> list[PIL.Image.Image]:
        """Latents [B, H, W, Z] -> images.

        Raises UserError for latents of another size, and without a VAE, unless the model draws pixels: latents of an
        image's size and channels.
        """
        require_drawable(self.config, self._vae is not None)
        latents = np.asarray(latents)
        if latents.shape[1:] != self.latent_shape:
            expected = ", ".join(map(str, self.latent_shape))
            raise UserError(f"latents of shape {latents.shape}, expected [images, {expected}]")
        if self._vae is None:
            return to_images(latents)
        config, params = self._vae
        vae = build(config, Execution(dtype=self._model.execution.dtype))
        images = []
        chunk_size = min(len(latents), VAE_CHUNK)
        for start in range(0, len(latents), VAE_CHUNK):
            chunk = latents[start : start + VAE_CHUNK]
            padded = np.pad(chunk, ((0, chunk_size - len(chunk)), (0, 0), (0, 0), (0, 0)))  # one compiled shape
            images += to_images(decode_latents(vae, params, padded))[: len(chunk)]
        return images

    def save_pretrained(self, folder: epath.PathLike, format: str = "orbax", dtype: DTypeLike | None = None) -> None:
        """As `Pipeline.save_pretrained`; a folder of ours has the VAE in it."""
        self._write(folder, format, dtype, self._vae if format == "orbax" else None)

    @property
    def _image_ids(self) -> tuple[int, ...]:
        """A learned vector takes the place of `<begin_of_image>`."""
        return self.tokenizer.begin_of_image_id, self.tokenizer.image_id

    def _noise(self, num_prompts: int, num_images: int, seed: int) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(num_images))
        noise = jax.vmap(lambda key: jax.random.normal(key, self.latent_shape))(keys)
        return jnp.tile(noise, (num_prompts, 1, 1, 1))


def latent_shape(config: JanusFlowConfig) -> tuple[int, int, int]:
    """(H, W, Z) of one image."""
    return config.uvit.latent_size, config.uvit.latent_size, config.uvit.latent_channels


def require_drawable(config: JanusFlowConfig, has_vae: bool) -> None:
    """Raises UserError where latents cannot become images: there is no VAE and the model does not draw pixels."""
    if not has_vae and not config.latents_are_pixels:
        raise UserError(
            "this JanusFlow model has no VAE to draw with: give one to from_pretrained, or --vae, or convert the "
            "model together with it"
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
