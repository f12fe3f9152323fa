"""Asks a Janus model about images (or without any): one answer, or a conversation when --prompt is not given.

python -m launch.chat --checkpoint=quickstart/checkpoint --image=digit.png --prompt="Which digit is this?"
"""

import json
from typing import Any

from absl import flags

from janus_jax.data.images import load_image
from janus_jax.errors import UserError
from janus_jax.inference.loading import load
from janus_jax.inference.validation import RequestReader, user_message
from janus_jax.weights.open_model import open_model
from launch.cli import errors, model_flags
from launch.cli.terminal_chat import converse, print_answer

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "model folder or training workdir")
EMA = flags.DEFINE_bool("ema", False, "of a workdir: the average of the parameters over its steps")
IMAGE = flags.DEFINE_list("image", [], "image files, separated by commas")
PROMPT = flags.DEFINE_string("prompt", None, "question; without it, a conversation on the terminal")
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "longest answer, in tokens; default: 512, or what the prompt leaves of the context"
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 0.95, "probability mass sampled from when the temperature is not 0")
TOP_K = flags.DEFINE_integer("top_k", 0, "sample among the k most probable tokens; 0: all")
SEED = flags.DEFINE_integer("seed", 0, "seed of the sampling, 0 to 2**32 - 1")
JSON = flags.DEFINE_bool("json", False, "with --prompt: print text, token_ids and prompt_token_ids as JSON")


def main() -> None:
    errors.require("checkpoint")
    if PROMPT.value is not None and not PROMPT.value.strip():
        raise UserError("--prompt is empty, expected a question")
    if PROMPT.value is None and JSON.value:
        raise UserError("--json prints a single answer and needs --prompt")
    # All mistakes are told before the weights, which take long. Before a conversation: whether its images fit.
    images = [load_image(path) for path in IMAGE.value]
    source = open_model(CHECKPOINT.value, EMA.value)
    first = [user_message("?" if PROMPT.value is None else PROMPT.value, len(images))]
    RequestReader(source.config, source.tokenizer).text([first], [images], **_options())
    conversation = load(source, **model_flags.load_options()).conversation()
    if PROMPT.value is None:
        converse(conversation, images, _options())
    elif JSON.value:
        answer = conversation.ask(PROMPT.value, images, **_options())
        print(json.dumps(answer._asdict(), ensure_ascii=False))
    else:
        print_answer(conversation, PROMPT.value, images, _options())


def _options() -> dict[str, Any]:
    return {flag.name: flag.value for flag in (MAX_NEW_TOKENS, TEMPERATURE, TOP_P, TOP_K, SEED)}


if __name__ == "__main__":
    errors.run(main)
