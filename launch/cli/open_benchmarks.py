"""Opens the benchmarks that --benchmarks names in what --data holds."""

from collections.abc import Sequence

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Benchmark, ImageBenchmark
from janus_jax.evaluation.image_benchmarks import registry as image_registry
from janus_jax.evaluation.readers.find import find
from janus_jax.phases import phase
from launch.cli.metric_flags import metric_options


def open_benchmarks(
    data: str, names: Sequence[str], protocol: str, num_images: int | None
) -> Sequence[Benchmark | ImageBenchmark]:
    """Opens benchmarks of questions and of images, in the order of their names. "all" takes what the folder holds.

    Raises UserError for an unknown name, for files that are missing or damaged, and for two sources of a benchmark.
    """
    known = [*registry.DEFINITIONS, *image_registry.OPENERS]
    unknown = [name for name in names if name not in (*known, "all")]
    if unknown:
        raise UserError(f"--benchmarks={unknown[0]}: expected all or some of {', '.join(known)}")
    of_images = [name for name in names if name in image_registry.OPENERS]
    if len(of_images) == len(names):  # a file or folder of prompts or images need not be recognised by `find`
        folder = epath.Path(data)
        if not folder.exists():
            raise UserError(f"--data={data} is missing")
        folders = find(folder).folders.folders if folder.is_dir() else ()
        return image_registry.load(folder, folders, of_images, metric_options(), num_images)
    with phase("looking for benchmarks"):
        found = find(data)
    folders = found.folders.folders
    if list(names) == ["all"]:
        of_questions, of_images = found.benchmarks, image_registry.found_names(folders)
        if not of_questions and not of_images:
            raise UserError(f"--data={data}: holds no benchmark of {', '.join(known)}")
    else:
        of_questions = [name for name in names if name not in of_images]
    opened: dict[str, Benchmark | ImageBenchmark] = {}
    if of_questions:
        opened |= {benchmark.name: benchmark for benchmark in registry.load(found, of_questions, protocol)}
    if of_images:
        loaded = image_registry.load(data, folders, of_images, metric_options(), num_images)
        opened |= {benchmark.name: benchmark for benchmark in loaded}
    order = [*of_questions, *of_images] if list(names) == ["all"] else names
    return [opened[name] for name in order]
