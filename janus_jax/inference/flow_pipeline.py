"""The drawing side of a JanusFlow model with its tokenizer and its VAE."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.typing import DTypeLike

from janus_jax.convert.folders import require_vae
from janus_jax.data.images import to_images
from janus_jax.data.prompts import IMAGE_PLACEHOLDER, STYLES, generation_prompt
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.inference.flow_sampling import decode_latents, sample_latents
from janus_jax.inference.prompt import pad_prompts
from janus_jax.models.config import Execution, JanusFlowConfig, VAEConfig
from janus_jax.models.parameters import Params, build
from janus_jax.models.stack import unstack_layers
from janus_jax.ops.flow import SOLVERS

VAE_CHUNK = 4  # most images per VAE decoding call: bounds its memory


class JanusFlowPipeline:
    """A JanusFlow model ready to draw."""

    def __init__(
        self,
        config: JanusFlowConfig,
        params: Params,
        tokenizer: Tokenizer,
        vae_config: VAEConfig,
        vae_params: Params,
        dtype: DTypeLike = jnp.float32,
    ):
        """Takes parameters with stacked layers, as checkpoints hold them.

        Raises UserError when the VAE is of another kind than the model was trained with.
        """
        require_vae(config, vae_config)
        self.config = config
        self.tokenizer = tokenizer
        self._style = STYLES[config.prompt_style]
        self._model = build(config, Execution(dtype=dtype, scan_layers=False))
        self._params = unstack_layers(params)
        self._vae, self._vae_params = build(vae_config, Execution(dtype=dtype)), vae_params

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one image."""
        uvit = self.config.uvit
        return uvit.latent_size, uvit.latent_size, uvit.latent_channels

    def generate_images(
        self, prompt: str | Sequence[str], num_images: int = 1, **options: Any
    ) -> list[PIL.Image.Image]:
        """Draws `num_images` images of a prompt (of each of a list, in order); options of `generate_latents`."""
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

        Image i of a prompt depends on the seed, i and the prompt alone, not on the batch it is drawn in.

        Args:
            num_steps: of the solver; the paper's figures are for 30.
            solver: "euler" (the paper's) or "heun", two passes through the model per step.
            initial_noise: in the shape of the result, instead of noise from the seed.

        Raises:
            UserError: empty prompt, bad option, noise of another shape, or a prompt that does not fit the context.
        """
        if num_images < 1:
            raise UserError(f"num_images={num_images}, expected at least 1")
        if num_steps < 1:
            raise UserError(f"num_steps={num_steps}, expected at least 1")
        if solver not in SOLVERS:
            raise UserError(f"solver={solver!r} is not one of {sorted(SOLVERS)}")
        shape = (len(prompts) * num_images, *self.latent_shape)
        if initial_noise is not None:
            initial_noise = _check_noise(initial_noise, shape)
        if not prompts:
            return np.zeros(shape, np.float32)
        ids = [self._prefix(prompt) for prompt in prompts for _ in range(num_images)]
        noise = self._noise(len(prompts), num_images, seed) if initial_noise is None else initial_noise
        latents = sample_latents(
            self._model,
            self._params,
            pad_prompts(ids, self.tokenizer.image_id),
            jnp.asarray(noise),
            jnp.float32(cfg_weight),
            num_steps=num_steps,
            solver=solver,
        )
        return np.asarray(latents)

    def draw(self, latents: np.ndarray) -> list[PIL.Image.Image]:
        """Latents [B, H, W, Z] -> images."""
        images = []
        size = min(len(latents), VAE_CHUNK)
        for start in range(0, len(latents), VAE_CHUNK):
            chunk = latents[start : start + VAE_CHUNK]
            padded = np.pad(chunk, ((0, size - len(chunk)), (0, 0), (0, 0), (0, 0)))  # one compiled shape
            images += to_images(decode_latents(self._vae, self._vae_params, padded))[: len(chunk)]
        return images

    def _prefix(self, prompt: str) -> list[int]:
        """The ids that the LLM sees before the time token, which takes the place of `<begin_of_image>`."""
        if not prompt.strip():
            raise UserError("the prompt is empty, expected a description of the image")
        ids = self.tokenizer.encode(generation_prompt(prompt, self._style))[:-1]
        if self.tokenizer.image_id in ids:
            raise UserError(f"the prompt of a drawing contains {IMAGE_PLACEHOLDER}, which is for questions")
        limit = self.config.llama.max_length
        if len(ids) + self.config.image_tokens > limit:
            raise UserError(
                f"prompt of {len(ids)} tokens and {self.config.image_tokens} of an image exceed the context of "
                f"{limit} tokens"
            )
        return ids

    def _noise(self, num_prompts: int, num_images: int, seed: int) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(num_images))
        noise = jax.vmap(lambda key: jax.random.normal(key, self.latent_shape))(keys)
        return jnp.tile(noise, (num_prompts, 1, 1, 1))


def _check_noise(noise: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if noise.shape != shape or noise.dtype.kind != "f":
        raise UserError(
            f"initial_noise of shape {noise.shape} and type {noise.dtype}, expected floats of shape {shape}"
        )
    if not np.isfinite(noise).all():
        raise UserError("initial_noise has values that are not finite")
    return noise.astype(np.float32)
