"""Lets lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) evaluate the models of the family.

    lmms-eval --model janus_jax --model_args pretrained=Janus-Pro-7B --tasks pope --batch_size 16

lmms-eval finds `manifest` by the entry point of the installed package. Written against lmms-eval 0.7.3; nothing else of
this project imports this module.
"""

import os
from collections.abc import Sequence
from typing import NoReturn

import jax
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from janus_jax.errors import UserError
from janus_jax.evaluation.harness import HarnessRequest, answer_all
from janus_jax.inference.loading import from_pretrained
from janus_jax.sharding import MESH_AXES, make_mesh

NAME = "janus_jax"


class JanusJax(lmms):
    """A model of lmms-eval that generates answers. It has no log-likelihoods, and no tasks of several rounds."""

    is_simple = False  # tasks hand over chat messages, in which images keep their places

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 16,
        dtype: str | None = None,
        quantization: str | None = None,
        mesh: str | None = None,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        """Loads a model; the arguments are those of `--model_args`.

        Args:
            pretrained: model folder or training workdir.
            dtype, quantization: those of `from_pretrained`.
            mesh: number of devices along data, fsdp and tensor as in "1x1x4", of which one may be -1; None is a single
                device.
            system_prompt: None is that of the checkpoint's prompt style.
            max_batch_size, device: lmms-eval passes them to every model. JAX chooses its device by itself.

        Raises:
            UserError: not a model, a batch size that is not a number from 1, another mesh, or several processes.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}, expected one process, which uses all devices of mesh="
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size={batch_size}, expected a whole number from 1")
        self._batch_size, self._system_prompt = int(batch_size), system_prompt
        self._pipeline = from_pretrained(
            pretrained, dtype, mesh=None if mesh is None else _mesh(mesh), quantization=quantization
        )

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers in the order of the requests; see `harness.answer_all`."""
        return answer_all(self._pipeline, list(map(self._read, requests)), self._batch_size, self._system_prompt)

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        raise UserError(f"{_task(requests)} asks for log-likelihoods, but {NAME} only generates answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        raise UserError(f"{_task(requests)} has several rounds, but {NAME} answers one question at a time")

    def _read(self, instance: Instance) -> HarnessRequest:
        _, doc_to_messages, options, doc_id, task, split = instance.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return HarnessRequest(f"{task}/{split}/{doc_id}", messages, options)


def manifest() -> ModelManifest:
    """What the entry point of the package says: the name of the model, and where its class is."""
    return ModelManifest(model_id=NAME, chat_class_path=f"{JanusJax.__module__}.{JanusJax.__qualname__}")


def _mesh(text: str) -> jax.sharding.Mesh:
    sizes = text.split("x")
    if len(sizes) != len(MESH_AXES) or not all(size.removeprefix("-").isdecimal() for size in sizes):
        raise UserError(f"mesh={text}, expected three whole numbers such as 1x1x4")
    return make_mesh(dict(zip(MESH_AXES, map(int, sizes), strict=True)))


def _task(requests: Sequence[Instance]) -> str:
    return f"task {requests[0].task_name}" if requests else "a task"
