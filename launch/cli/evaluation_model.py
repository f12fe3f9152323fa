"""The model of `launch.evaluate`: its options, what its answers depend on, and the run itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark, Question
from janus_jax.models.config import JanusFlowConfig
from janus_jax.models.presets import PRESETS
from janus_jax.phases import phase
from janus_jax.weights.locations import existing_path
from launch.cli import compilation_cache, model_flags, window_flag
from launch.cli.worker import take_own_chips, this_worker

if TYPE_CHECKING:
    from janus_jax.evaluation import job
    from janus_jax.evaluation.model_answers import Decoding, ModelAnswers, RequestMaker
    from janus_jax.weights.reader import ModelReader

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Model folder or training workdir. The default is to score the answers in --output."
)
EMA = flags.DEFINE_bool("ema", False, "Take the average of a workdir's parameters over its steps.")
ROLES = flags.DEFINE_enum(
    "role_strings",
    "checkpoint",
    ["checkpoint", "vlmevalkit"],
    "Strings for user and assistant: those of the checkpoint's prompt style, or the words of VLMEvalKit's adaptor.",
)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Length of the longest answer in tokens. The default is that of the benchmark.",
    lower_bound=1,
)
CFG_WEIGHT = flags.DEFINE_float(
    "cfg_weight", None, "Weight of the guidance of images. The default is 5 for codes and 2 for JanusFlow."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of images, 0 to 2**32 - 1. Answers are greedy.")
VAE = flags.DEFINE_string("vae", None, "JanusFlow: folder of its VAE. The default is CHECKPOINT/vae.")
PROCESS_ID = flags.DEFINE_integer(
    "process_id",
    None,
    "Number of this process, from 0. The default is what TPU_WORKER_ID or Slurm says, otherwise 0.",
    lower_bound=0,
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of processes that share the work. The default is what TPU_WORKER_HOSTNAMES or Slurm says, otherwise 1.",
    lower_bound=1,
)


class OpenedModel(NamedTuple):
    """The model of --checkpoint without its weights."""

    reader: "ModelReader"
    vae: epath.Path | None

    @property
    def generation(self) -> dict[str, Any]:
        """Options of images."""
        from janus_jax.evaluation.model_answers import published_generation

        published = published_generation(self.reader.config, CFG_WEIGHT.value)
        if isinstance(self.reader.config, JanusFlowConfig):
            return published
        return published | {"window": window_flag.window()}

    def decoding(self, benchmark: Benchmark | ImageBenchmark) -> "Decoding":
        """How the requests of a benchmark are made; benchmarks of images have no options of questions."""
        from janus_jax.evaluation.model_answers import Decoding

        limit: int = getattr(benchmark, "max_new_tokens", Decoding.max_new_tokens)
        return Decoding(
            self.generation,
            MAX_NEW_TOKENS.value or limit,
            getattr(benchmark, "system_prompt", None),
            ROLES.value,
            SEED.value,
        )

    def requests(self, benchmark: Benchmark | ImageBenchmark) -> "RequestMaker":
        """Raises UserError for options that no request could have."""
        from janus_jax.evaluation.model_answers import RequestMaker

        return RequestMaker(self.reader.config, self.reader.tokenizer, self.decoding(benchmark))

    def identity(self, load_options: Mapping[str, Any]) -> dict[str, Any]:
        """What all results depend on besides the benchmarks."""
        import jax

        from janus_jax.evaluation.identity import identify_model, versions
        from janus_jax.inference.loading import default_dtype

        mesh, buckets = load_options["mesh"], load_options["buckets"]
        return {
            "checkpoint": identify_model(CHECKPOINT.value or "", EMA.value),
            "vae": identify_model(self.vae) if self.vae is not None else None,
            "adapter": identify_model(load_options["adapter"]) if load_options["adapter"] else None,
            "dtype": str(load_options["dtype"] or default_dtype()),
            "quantization": load_options["quantization"],
            "device": jax.devices()[0].device_kind,
            "mesh": dict(mesh.shape) if mesh is not None else None,
            "buckets": buckets._asdict(),
            "generation": self.generation,
            "seed": SEED.value,
            "role_strings": ROLES.value,
            "versions": versions(),
        }

    @property
    def preset(self) -> str | None:
        """Our name of the architecture of a released model."""
        return next((name for name, config in PRESETS.items() if config == self.reader.config), None)


def check_flags() -> None:
    """Raises UserError for mistakes that can be seen before JAX is imported."""
    this_worker(PROCESS_ID.value, NUM_PROCESSES.value)
    existing_path(CHECKPOINT.value or "")


def evaluate(tasks: Sequence["job.Task"], output: epath.Path, on_scored: Callable[[], object]) -> "job.Outcome":
    """Runs all benchmarks; see `job.evaluate`. All mistakes are reported before the weights are loaded."""
    with phase("starting"):
        from janus_jax.evaluation import job
        from janus_jax.evaluation.identity import hold_identity
        from janus_jax.evaluation.model_answers import ModelAnswers
        from janus_jax.evaluation.results import RUN_FILE
        from janus_jax.evaluation.runner import StopSignal
        from janus_jax.inference.janusflow import check_can_decode
        from janus_jax.inference.loading import load
        from launch.cli import reconstruction_model

    worker = this_worker(PROCESS_ID.value, NUM_PROCESSES.value)
    take_own_chips(worker)
    if any(map(reconstruction_model.is_reconstruction, tasks)):
        if VAE.value:
            raise UserError(f"--vae={VAE.value}: reconstruction takes the folder of a VAE as --checkpoint")
        return reconstruction_model.evaluate(tasks, CHECKPOINT.value or "", EMA.value, output, worker, on_scored)
    opened = _open()
    makers = {task.benchmark.name: opened.requests(task.benchmark) for task in tasks}
    if not all(task.is_questions for task in tasks) and isinstance(opened.reader.config, JanusFlowConfig):
        check_can_decode(opened.reader.config, opened.vae is not None)
    load_options = model_flags.load_options()
    information = {"checkpoint": CHECKPOINT.value, "preset": opened.preset}
    hold_identity(output / RUN_FILE, opened.identity(load_options), information)
    for task in tasks:
        decoding, request = opened.decoding(task.benchmark), task.benchmark.requests[0]
        asked = {"max_new_tokens": decoding.max_new_tokens, "system_prompt": decoding.system_prompt}
        example = request.prompt
        if isinstance(request, Question):
            example = makers[task.benchmark.name].rendered(request)
        job.hold_task(task, asked, {"example_prompt": example})
    compilation_cache.enable()
    pipeline = load(opened.reader, vae=opened.vae, **load_options)
    with StopSignal() as stop:
        return job.evaluate(
            tasks,
            lambda task: ModelAnswers(pipeline, opened.decoding(task.benchmark)),
            worker,
            stop=lambda: stop.requested,
            on_scored=on_scored,
        )


def ask(benchmark: Benchmark | ImageBenchmark) -> "ModelAnswers":
    """A loaded model that answers the questions of one benchmark, outside of any run."""
    from janus_jax.evaluation.model_answers import ModelAnswers
    from janus_jax.inference.loading import load

    opened = _open()
    opened.requests(benchmark)
    compilation_cache.enable()
    return ModelAnswers(load(opened.reader, vae=opened.vae, **model_flags.load_options()), opened.decoding(benchmark))


def _open() -> OpenedModel:
    """Raises UserError for a folder that is no model, or a VAE that is not its own."""
    from janus_jax.weights.open_model import open_model
    from janus_jax.weights.vae import find_vae

    folder = CHECKPOINT.value or ""
    reader = open_model(folder, EMA.value)
    if isinstance(reader.config, JanusFlowConfig):
        model_flags.refuse([window_flag.WINDOW], "JanusFlow")
    return OpenedModel(reader, find_vae(reader, folder, VAE.value))
