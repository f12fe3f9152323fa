"""Asks a Janus model about images, or without images: one answer, or a conversation when --prompt is not given.

python -m launch.chat --checkpoint=quickstart/checkpoint --image=digit.png --prompt="Which digit is this?"
"""

import functools
from typing import Any

from absl import flags

from janus_jax.data.images import load_image
from janus_jax.errors import UserError
from janus_jax.phases import phase
from janus_jax.weights.locations import existing_path
from launch.cli import compilation_cache, errors, model_flags
from launch.cli.phase_display import show_phases

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model folder or training workdir. Required.")
EMA = flags.DEFINE_bool("ema", False, "Take the average of a workdir's parameters over its steps.")
IMAGE = flags.DEFINE_list("image", [], "Image files, separated by commas.")
PROMPT = flags.DEFINE_string("prompt", None, "Question. Without it a conversation starts on the terminal.")
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Length of the longest answer in tokens. The default is 512, or what the prompt leaves of the context.",
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Temperature of sampling; 0 is greedy.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 0.95, "Probability mass that is sampled from when the temperature is not 0.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Number of most probable tokens that are sampled from; 0 is all.")
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the sampling, 0 to 2**32 - 1. In a conversation the number of the turn counts too."
)
JSON = flags.DEFINE_bool("json", False, "With --prompt, print text, token_ids and prompt_token_ids as JSON.")
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(compilation_cache)


def main() -> None:
    errors.require("checkpoint")
    if PROMPT.value is not None and not PROMPT.value.strip():
        raise UserError("--prompt is empty, expected a question")
    if PROMPT.value is None and JSON.value:
        raise UserError("--json prints a single answer and needs --prompt")
    # All mistakes are reported before the weights are loaded, which takes long. Before a conversation starts, this
    # checks that its images fit the context.
    images = [load_image(path) for path in IMAGE.value]
    existing_path(CHECKPOINT.value)  # before JAX is imported

    if not JSON.value:
        show_phases()
    with phase("starting"):
        from janus_jax.inference.engine import Engine
        from janus_jax.inference.loading import load
        from janus_jax.inference.validation import RequestReader, user_message
        from janus_jax.weights.open_model import open_model
        from launch.cli.terminal_chat import converse, print_answer, print_json

    source = open_model(CHECKPOINT.value, EMA.value)
    first = [user_message("?" if PROMPT.value is None else PROMPT.value, len(images))]
    (request,), sampling = RequestReader(source.config, source.tokenizer).text([first], [images], **_options())
    compilation_cache.enable()
    ahead = functools.partial(Engine.compile_answer_ahead, request=request, sampling=sampling)
    conversation = load(source, **model_flags.load_options(), compile_ahead=ahead).conversation()
    if PROMPT.value is None:
        converse(conversation, images, _options())
    elif JSON.value:
        print_json(conversation.ask(PROMPT.value, images, **_options()))
    else:
        print_answer(conversation, PROMPT.value, images, _options())


def _options() -> dict[str, Any]:
    return {flag.name: flag.value for flag in (MAX_NEW_TOKENS, TEMPERATURE, TOP_P, TOP_K, SEED)}


if __name__ == "__main__":
    errors.run(main)
