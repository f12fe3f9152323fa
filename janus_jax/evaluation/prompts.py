"""What a model is asked: the text of a question in one of two published protocols.

`janus` is the adaptor of Janus' authors in VLMEvalKit (pull request 541), with LLaVA's short answers where it has none;
`llava` is LLaVA@c121f04 (`docs/Evaluation.md`). Images come before the text. OCR tokens are never part of it.
"""

import re

from janus_jax.errors import UserError
from janus_jax.evaluation.readers.records import Item

PROTOCOLS = ("janus", "llava")
KINDS = ("yes_no", "yes_no_kept", "options", "short", "free", "caption")

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
_LETTER_CHINESE = "请直接回答选项字母。"
_DIRECT = "Answer the question directly. "  # the blank at the end is the adaptor's
_CAPTION = "Provide a one-sentence caption for the provided image."
_YES_NO_REQUEST = " Please answer yes or no."
_CHINESE = re.compile("[\u4e00-\u9fff]")


def render(kind: str, item: Item, protocol: str) -> str:
    """The text of the user, without roles and images.

    Args:
        kind: One of KINDS. `yes_no_kept` keeps the sentence "Please answer yes or no." in the janus protocol, as the
            adaptor does for MME; `options` needs `fields["options"]`, and asks an open question where it is empty.

    Raises:
        UserError: the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol={protocol}: expected {' or '.join(PROTOCOLS)}")
    question = item.question
    if kind == "yes_no" or (kind == "yes_no_kept" and protocol == "llava"):
        return f"{question.removesuffix(_YES_NO_REQUEST)}\n{SHORT}"
    if kind in ("yes_no_kept", "short"):
        return f"{question}\n{SHORT}"
    if kind == "options":
        return _with_options(item, protocol)
    if kind == "caption":
        return _CAPTION
    if kind == "free":
        return question
    raise ValueError(f"kind {kind!r}, expected one of {', '.join(KINDS)}")


def _with_options(item: Item, protocol: str) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in item.fields["options"].items())
    if not options:
        return f"{item.question}\n{_DIRECT if protocol == 'janus' else SHORT}"
    hint = item.fields.get("hint", "")
    before = f"{'Hint: ' if protocol == 'janus' else ''}{hint}\n" if hint else ""
    text = f"{before}{item.question}\n{options}"
    request = _LETTER_CHINESE if _CHINESE.search(text) else LETTER
    return f"{text}\n{request}" if protocol == "janus" else f"{text}{request}"
