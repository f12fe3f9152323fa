"""Compares our model with transformers' on one image and prompt, stage by stage, in float32.

`launch.convert --verify` uses it.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from janus_jax.batches import Modality
from janus_jax.data.prompts import IMAGE_PLACEHOLDER, STYLES, Message, format_conversation
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import JanusConfig
from janus_jax.models.execution import Execution
from janus_jax.models.params import Params, bind, build
from janus_jax.models.siglip import Siglip
from janus_jax.weights.json_fields import CONFIG_FILE, read_fields

VQ_IDS = "VQ ids"  # with latents and codebook normalised, the rule of the original and ours
VQ_IDS_TRANSFORMERS = "VQ ids, transformers' own rule"  # with neither normalised
STAGES = ("SigLIP features", "aligner output", "text logits", "image logits", VQ_IDS, "VQ pixels")
_MOST_DIFFERENCE = 1e-4  # relative; rounding in float32 over 24 layers stays far below, a wrong weight lies far above
_MOST_IDS = 0.01  # where two codes are almost equally near, rounding decides between them
_LEAST_TRANSFORMERS = 5  # earlier versions name outputs and arguments otherwise
_QUESTION = f"{IMAGE_PLACEHOLDER}\nWhat is in the image?"


class StageDifference(NamedTuple):
    stage: str
    difference: float  # largest |ours - theirs|; for ids, the fraction of them that differ
    scale: float  # largest |theirs|; for ids, 1

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference. That to transformers' own rule for ids is expected."""
        if self.stage == VQ_IDS_TRANSFORMERS:
            return True
        return self.difference <= (_MOST_IDS if self.stage == VQ_IDS else _MOST_DIFFERENCE * self.scale)


class _Inputs(NamedTuple):
    image: np.ndarray  # [1, image, image, 3] in [-1, 1], for understanding
    vq_image: np.ndarray  # [1, H, W, 3] in [-1, 1], of the image tokenizer's size
    prompt: np.ndarray  # [1, L] int32, with the placeholders of the image
    modality: np.ndarray  # [1, L], a `Modality` per token of the prompt
    codes: np.ndarray  # [1, N] int32


def why_not() -> str:
    """The reason why `compare_with_torch` cannot run here; empty when it can."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    version = importlib.metadata.version("transformers")
    if int(version.partition(".")[0]) < _LEAST_TRANSFORMERS:
        return f"transformers is {version}, comparing needs {_LEAST_TRANSFORMERS} or newer"
    return ""


def compare_with_torch(
    folder: epath.PathLike, config: JanusConfig, params: Params, tokenizer: Tokenizer
) -> list[StageDifference]:
    """Runs transformers' model of a folder, then ours with `params`, and compares each stage.

    Needs the memory of the whole model in float32. transformers' own VQ encoder leaves out a normalisation, which
    changes its ids unless the codes have unit length. Where it does, these ids are listed too.

    Raises:
        UserError: not a Hugging Face folder, tensors are missing or left over there, or it has another id for the
            placeholder of images than the tokenizer.
    """
    inputs = _make_inputs(config, tokenizer)
    theirs = _run_torch(epath.Path(folder), inputs, tokenizer.image_id)
    ours = _run_ours(config, params, inputs)
    differences = [_difference(stage, ours[stage], theirs[stage]) for stage in STAGES]
    if not np.array_equal(theirs[VQ_IDS_TRANSFORMERS], theirs[VQ_IDS]):
        differences.append(_difference(VQ_IDS_TRANSFORMERS, ours[VQ_IDS], theirs[VQ_IDS_TRANSFORMERS]))
    return differences


def format_differences(differences: Sequence[StageDifference]) -> str:
    """A table with a line per stage."""
    lines = [f"{'stage':<32}{'difference':>12}{'scale':>12}"]
    for row in differences:
        is_ids = row.stage in (VQ_IDS, VQ_IDS_TRANSFORMERS)
        numbers = f"{row.difference:>12.1%}{'of ids':>12}" if is_ids else f"{row.difference:>12.1e}{row.scale:>12.3g}"
        lines.append(f"{row.stage:<32}{numbers}{'' if row.passed else '  DIFFERS'}")
    return "\n".join(lines)


def _make_inputs(config: JanusConfig, tokenizer: Tokenizer) -> _Inputs:
    messages = [Message("user", _QUESTION), Message("assistant", "")]
    ids = tokenizer.encode(format_conversation(messages, STYLES[config.prompt_style]))
    prompt = tokenizer.expand_images(ids, config.siglip.num_tokens)[None]
    is_image = prompt == tokenizer.image_id
    codes = np.arange(config.image_tokens) * 7919 % config.vq.num_codes  # multiples of a prime: from the whole table
    return _Inputs(
        image=_test_image(config.siglip.image_size),
        vq_image=_test_image(config.vq.image_size),
        prompt=prompt,
        modality=np.where(is_image, Modality.UNDERSTANDING_IMAGE, Modality.TEXT),
        codes=codes.astype(np.int32)[None],
    )


def _test_image(size: int) -> np.ndarray:
    """A colour gradient with a disc and a square: [1, size, size, 3] float32 in [-1, 1]."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    image = np.stack([y, x, 1 - y], axis=-1)
    image[(x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04] = (0.9, 0.2, 0.1)
    image[np.maximum(abs(x - 0.75), abs(y - 0.65)) < 0.15] = (0.1, 0.2, 0.9)
    return image[None].astype(np.float32) * 2 - 1


def _run_ours(config: JanusConfig, params: Params, inputs: _Inputs) -> dict[str, np.ndarray]:
    """Stage -> output of our model."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    with jax.default_matmul_precision("highest"):
        return {stage: np.asarray(output) for stage, output in _stages(config, params, inputs).items()}


@functools.partial(jax.jit, static_argnames="config")
def _stages(config: JanusConfig, params: Params, inputs: _Inputs) -> dict[str, jax.Array]:
    model = bind(build(config), params)
    siglip = bind(Siglip(config.siglip, Execution()), params["siglip"])

    def hidden(x: jax.Array) -> jax.Array:
        positions = jnp.arange(x.shape[1])[None]
        return model(x, positions, jnp.ones_like(positions))[0]

    prompt = model(inputs.prompt, inputs.modality, inputs.image[None], method="embed")
    codes = model(inputs.codes, method="embed_codes")
    return {
        "SigLIP features": siglip(inputs.image),
        "aligner output": model(inputs.image, method="embed_images"),
        "text logits": model(hidden(prompt), method="text_logits"),
        "image logits": model(hidden(codes), method="image_logits"),
        VQ_IDS: model(inputs.vq_image, method="encode_codes"),
        "VQ pixels": model(inputs.codes, method="decode_codes"),
    }


def _run_torch(folder: epath.Path, inputs: _Inputs, image_id: int) -> dict[str, np.ndarray]:
    """Stage -> output of transformers' model, in our layout."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    def images(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    model = _load_torch_model(folder, image_id)
    vq, image, codes = model.model.vqmodel, images(inputs.image), torch.from_numpy(inputs.codes).long()
    with torch.inference_mode():
        features = model.model.get_image_features(image)
        prompt = torch.from_numpy(inputs.prompt).long()
        mask = torch.ones_like(prompt)
        text = model(input_ids=prompt, pixel_values=image, attention_mask=mask)
        generated = model.model.language_model(inputs_embeds=model.prepare_embeddings_for_image_generation(codes))
        encoded = vq.encode(images(inputs.vq_image))
        latents = F.normalize(vq.quant_conv(encoded.last_hidden_state).permute(0, 2, 3, 1).flatten(1, 2), dim=-1)
        outputs = {
            "SigLIP features": features.last_hidden_state,
            "aligner output": features.pooler_output,
            "text logits": text.logits,
            "image logits": model.model.generation_head(generated.last_hidden_state),
            VQ_IDS: (latents @ F.normalize(vq.quantize.embedding.weight, dim=-1).T).argmax(-1),
            VQ_IDS_TRANSFORMERS: encoded.image_tokens[None],
            "VQ pixels": vq.decode(codes).permute(0, 2, 3, 1),
        }
    return {stage: output.numpy() for stage, output in outputs.items()}


def _load_torch_model(folder: epath.Path, image_id: int) -> Any:
    import torch
    from transformers import JanusForConditionalGeneration

    path = folder / CONFIG_FILE
    if read_fields(path).values.get("model_type") != "janus":
        raise UserError(f"{folder}: not a Hugging Face Janus folder, which comparing with PyTorch needs")
    loaded: Any = JanusForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:  # transformers only warns, and initialises missing weights at random
            raise UserError(f"{folder}: transformers reports {kind}: {', '.join(sorted(info[kind])[:10])}")
    if model.config.image_token_id != image_id:
        raise UserError(
            f"{path}: image_token_id={model.config.image_token_id}, expected {image_id}, "
            f"the id of {IMAGE_PLACEHOLDER} in the tokenizer"
        )
    return model.eval()


def _difference(stage: str, ours: np.ndarray, theirs: np.ndarray) -> StageDifference:
    if stage in (VQ_IDS, VQ_IDS_TRANSFORMERS):
        return StageDifference(stage, float(np.mean(ours != theirs)), 1.0)
    return StageDifference(stage, float(np.abs(ours - theirs).max()), float(np.abs(theirs).max()))
