"""The folders and files of models that users name, and what to say when there is none."""

import difflib
import os
import re

from etils import epath

from janus_jax.errors import UserError

_WEB = re.compile(r"(https?|hf)://")
_ON_THE_HUB = re.compile(r"((https?://)?(www\.)?huggingface\.co/|hf://)?(?P<name>[\w.-]+/[\w.-]+?)(/|/tree/\w+/?)?")


def existing_path(location: epath.PathLike) -> epath.Path:
    """The path of a folder or file that exists.

    Raises:
        UserError: it does not. The message says how a model that has this name on the Hugging Face Hub gets here, or
            names a folder with nearly the same name.
    """
    name = os.fspath(location)
    if not _WEB.match(name):
        try:
            path = epath.Path(name)
            if path.exists():
                return path
        except ImportError as error:  # a bucket whose library is not installed
            raise UserError(f"{name}: {error}") from error
    raise UserError(f"{name}: no such folder; {_advice(name)}")


def _advice(name: str) -> str:
    on_the_hub, parent = _ON_THE_HUB.fullmatch(name), epath.Path("." if _WEB.match(name) else name).parent
    if on_the_hub and (_WEB.match(name) or not parent.exists()):
        model = on_the_hub["name"]
        folder = model.partition("/")[2]
        return f"to fetch it from the Hugging Face Hub: `hf download {model} --local-dir={folder}`, then give {folder}"
    if not _WEB.match(name) and parent.is_dir():
        near = difflib.get_close_matches(epath.Path(name).name, [path.name for path in parent.iterdir()], n=1)
        if near:
            return f"did you mean {parent / near[0]}?"
    return "to fetch a model from the Hugging Face Hub: `hf download NAME --local-dir=FOLDER`, then give FOLDER"
