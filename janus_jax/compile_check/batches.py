"""Compiles what a model does with one batch of an evaluation: reading prompts, steps, and the decoding of images.

A batch of questions has an image per question, and a batch of images the same number of images of each prompt. The
time of a batch is predicted from its programs (`timeline` explains the prices). What the host does is not counted:
reading and resizing images, tokenising, and writing files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from janus_jax.compile_check.decode import PROMPT_TOKENS, require_codes, step_of
from janus_jax.compile_check.hlo import Module, parse
from janus_jax.compile_check.program import Program, compile_program, topology_devices
from janus_jax.compile_check.progress import compiling
from janus_jax.compile_check.timeline import Pricing, Timeline
from janus_jax.compiler_options import Options
from janus_jax.errors import UserError
from janus_jax.inference.aot import abstract_image_loop, replicated
from janus_jax.inference.decode_image import PromptState, decode_pixels, read_prompts, start_images, start_prompts
from janus_jax.inference.decode_text import TextState, continue_text, read_image, read_text, start_text
from janus_jax.inference.engine import GREEDY
from janus_jax.inference.memory import abstract_cache
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import JanusConfig, ModelConfig
from janus_jax.sharding import local_bytes, make_mesh

ROWS = 16  # questions, or images, of a batch: the default of launch.evaluate
TEXT_TOKENS = 64  # of a question before its image, and again behind it, padding included
ANSWER_SLOTS = 128  # room for the tokens of an answer: the default of launch.evaluate
IMAGES_PER_PROMPT = 4  # as GenEval and DPG-Bench ask for
EOS_ID = 0  # the programs are the same for any


@dataclasses.dataclass(frozen=True)
class Part:
    """One program, or one step of its loop, on one chip."""

    low: float  # seconds
    predicted: float
    high: float
    needed_bytes: int  # most bytes in use at the same time, with the weights that the program does not read

    def __add__(self, other: "Part") -> "Part":
        """One part after the other."""
        return Part(
            self.low + other.low,
            self.predicted + other.predicted,
            self.high + other.high,
            max(self.needed_bytes, other.needed_bytes),
        )

    def __mul__(self, times: int) -> "Part":
        """The part `times` times."""
        return Part(times * self.low, times * self.predicted, times * self.high, self.needed_bytes)


@dataclasses.dataclass(frozen=True)
class BatchCheck:
    """What the programs of `ROWS` questions and of `ROWS` guided images cost."""

    name: str  # name of the model
    topology: str
    chips: int
    mesh: dict[str, int]
    dtype: str
    quantization: str | None
    questions: Part  # reads the three pieces of the questions, with SigLIP, up to the first token of each answer
    answer_call: Part  # the second token of each answer, with what happens once before and after all further steps
    answer_step: Part  # one more token of each answer
    prompts: Part  # reads the prompts of images up to the first code of each image
    code_steps: Part  # all other codes of each image
    pixels: Part  # decodes the codes of all images
    hbm_bytes: int  # memory of a chip

    def answers(self, tokens: int) -> Part:
        """A batch of questions whose longest answer has `tokens` tokens, at least 2, its end included."""
        return self.questions + self.answer_call + self.answer_step * (tokens - 2)

    @property
    def images(self) -> Part:
        """A batch of images."""
        return self.prompts + self.code_steps + self.pixels

    @property
    def needed_bytes(self) -> int:
        """Bytes per chip that the largest of the programs needs."""
        return max(self.answers(2).needed_bytes, self.images.needed_bytes)


def check_batches(
    name: str,
    config: ModelConfig,
    topology: str,
    mesh: Mapping[str, int],
    *,
    dtype: str,
    quantization: str | None,
    options: Options,
) -> BatchCheck:
    """Compiles the programs of a batch.

    Args:
        mesh: sizes by axis.

    Raises:
        UserError: the model has no image codes; the topology or the mesh cannot work; a program does not fit the memory
            of a chip.
    """
    config = require_codes(name, config)
    devices = topology_devices(topology)
    programs = _Programs(config, make_mesh(dict(mesh), devices), dtype, quantization)

    def compiled(what: str, lowered: Any, argument_bytes: int) -> _Prices:
        with compiling(f"{what} of {name}, {quantization or dtype}, for {topology}"):
            program, reason = compile_program(lowered, devices, options)
        if program is None:
            raise UserError(f"--topology={topology}: {what} of {name}, {quantization or dtype}, does not fit: {reason}")
        # Parameters that a program does not read are no arguments of it, but lie in the memory as well.
        unread = programs.weight_bytes - (program.memory.arguments - argument_bytes)
        return _Prices(program, program.memory.peak + max(0, unread))

    texts = compiled(f"reading texts of {ROWS} questions", *programs.read_texts())
    pictures = compiled(f"reading images of {ROWS} questions", *programs.read_pictures())
    answers = compiled(f"steps of {ROWS} answers", *programs.continue_answers())
    prompts = compiled("reading prompts of images", *programs.read_prompts())
    first = compiled(f"first codes of {ROWS} images", *programs.start_images())
    codes = compiled(f"steps of {ROWS} images", *programs.continue_images())
    pixels = compiled(f"decoding {ROWS} images", *programs.decode_images())
    return BatchCheck(
        name=name,
        topology=topology,
        chips=len(devices),
        mesh=dict(programs.mesh.shape),
        dtype=dtype,
        quantization=quantization,
        questions=texts.whole * 2 + pictures.whole,
        answer_call=answers.whole,
        answer_step=answers.step,
        prompts=prompts.whole + first.whole,
        code_steps=codes.whole + codes.step * (config.image_tokens - 2),  # one code is in `prompts`, one in `whole`
        pixels=pixels.whole,
        hbm_bytes=codes.program.machine.hbm_bytes,
    )


class _Programs:
    """Lowers the programs of a batch, without weights or devices.

    Each method returns the program, and the bytes per chip of its arguments besides the parameters.
    """

    def __init__(self, config: JanusConfig, mesh: Mesh, dtype: str, quantization: str | None):
        self.config, self.mesh = config, mesh
        self.loop = abstract_image_loop(
            config,
            mesh,
            images=ROWS,
            prompt_length=PROMPT_TOKENS,
            prompts=ROWS // IMAGES_PER_PROMPT,
            dtype=jnp.dtype(dtype),
            quantization=quantization,
        )

    @property
    def weight_bytes(self) -> int:
        return local_bytes(self.loop.params)

    def read_texts(self) -> tuple[Any, int]:
        return self._read_questions(read_text, self._array((ROWS, TEXT_TOKENS), jnp.int32), TEXT_TOKENS)

    def read_pictures(self) -> tuple[Any, int]:
        size = self.config.siglip.image_size
        pixels = self._array((ROWS, size, size, 3), jnp.float32)
        return self._read_questions(read_image, pixels, self.config.siglip.num_tokens)

    def continue_answers(self) -> tuple[Any, int]:
        limits = self._array((ROWS,), jnp.int32)
        until = self._array((), jnp.int32)
        return self._lower(
            continue_text, self._answers(), self.loop.keys, limits, until, sampling=GREEDY, eos_id=EOS_ID
        )

    def read_prompts(self) -> tuple[Any, int]:
        state = self._prompts()
        tokens = self._array((state.hidden.shape[0], PROMPT_TOKENS), jnp.int32)
        return self._lower(read_prompts, state, tokens, tokens, tokens)

    def start_images(self) -> tuple[Any, int]:
        weight = self._array((), jnp.float32)
        unconditional_of = self._array((ROWS // IMAGES_PER_PROMPT,), jnp.int32)
        return self._lower(
            start_images, self._prompts(), unconditional_of, self.loop.keys, weight, sampling=Sampling(weight)
        )

    def continue_images(self) -> tuple[Any, int]:
        return self.loop.lower(), local_bytes((self.loop.state, self.loop.keys))

    def decode_images(self) -> tuple[Any, int]:
        return self._lower(decode_pixels, self._array((ROWS, self.config.image_tokens), jnp.int32))

    def _read_questions(self, program: Any, piece: Any, length: int) -> tuple[Any, int]:
        places = self._array((ROWS, length), jnp.int32)
        return self._lower(
            program, self._answers(), piece, places, places, self.loop.keys, sampling=GREEDY, eos_id=EOS_ID
        )

    def _answers(self) -> TextState:
        """The state of the answers, also before a piece of the questions is read."""
        slots = 2 * TEXT_TOKENS + self.config.siglip.num_tokens + ANSWER_SLOTS
        cache = abstract_cache(self.config.llama, self.loop.model.execution, ROWS, slots, self.mesh)
        return self._on_mesh(start_text(self.loop.model, ROWS, slots, EOS_ID, None, cache))

    def _prompts(self) -> PromptState:
        """The state of the prompts of images, of one length, so that they share their unconditional prompt."""
        rows = ROWS // IMAGES_PER_PROMPT + 1
        cache = abstract_cache(self.config.llama, self.loop.model.execution, rows, PROMPT_TOKENS, self.mesh)
        return self._on_mesh(start_prompts(self.loop.model, rows, PROMPT_TOKENS, None, cache))

    def _on_mesh(self, state: Any) -> Any:
        """The same state with shapes in the place of NumPy's arrays."""
        return jax.tree.map(lambda leaf: replicated(leaf, self.mesh) if isinstance(leaf, np.ndarray) else leaf, state)

    def _array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return replicated(jax.ShapeDtypeStruct(shape, dtype), self.mesh)

    def _lower(self, program: Any, *arguments: Any, **options: Any) -> tuple[Any, int]:
        placed = [leaf for leaf in jax.tree.leaves(arguments) if isinstance(leaf, jax.ShapeDtypeStruct)]
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            lowered = program.lower(self.loop.model, self.loop.params, *arguments, **options)
        return lowered, local_bytes(placed)


class _Prices:
    """Prices of a compiled program. Of a loop whose length is an argument, the whole program has one step."""

    def __init__(self, program: Program, needed_bytes: int):
        self.program, self._module, self._needed_bytes = program, parse(program.hlo), needed_bytes

    @property
    def whole(self) -> Part:
        return self._part(self._module)

    @property
    def step(self) -> Part:
        return self._part(step_of(self._module)[1])

    def _part(self, module: Module) -> Part:
        timeline, bandwidth = Timeline(module, self.program.machine), self.program.machine.hbm_bandwidth
        low, high = timeline.run(Pricing.LOW)[0], timeline.run(Pricing.HIGH)[0]
        mid, sums = timeline.run(Pricing.MID)
        traffic = (sums["hbm"] + sums["hbm copies"]) / bandwidth
        return Part(low, max(mid, traffic), high, self._needed_bytes)
