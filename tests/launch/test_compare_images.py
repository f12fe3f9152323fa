"""Images of several sources side by side, matched by name."""

import PIL.Image
import pytest
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import job
from janus_jax.evaluation.benchmark import ImageRequest
from launch.cli.comparison import compare
from tests.helpers.yes_no_benchmark import Pictures, StubModel


def write_images(folder, names, colour="red"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), colour).save(folder / name)
    return folder


@pytest.fixture
def sources(tmp_path):
    ours = write_images(tmp_path / "ours", ["00000.png", "00001.png", "00002.png"])
    (ours / "prompts.txt").write_text("a <red> fox\na cat\na dog\n")
    return [ours, write_images(tmp_path / "theirs", ["00000.jpg", "00002.webp"], "blue")]


@pytest.fixture
def output(tmp_path):
    (tmp_path / "output").mkdir()
    return epath.Path(tmp_path / "output")


def test_images_of_the_same_name_stand_in_a_row_under_their_prompt(sources, output):
    said = compare(list(map(str, sources)), output, [])
    page = (output / "images.html").read_text()
    assert "2 of 2 images" in said and str(output / "images.html") in said
    assert page.count("<article>") == 2 and page.count("data:image/jpeg") == 4
    assert "a &lt;red&gt; fox" in page and "a dog" in page and "a cat" not in page
    assert page.index("ours") < page.index("theirs")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda sources: sources[:1], "single source"),
        (lambda sources: [*sources, sources[0] / "none"], "none is no folder"),
        (lambda sources: [sources[0], write_images(sources[0].parent / "other", ["a.png"])], "same name"),
    ],
)
def test_sources_that_cannot_be_compared_are_named(sources, output, change, named):
    with pytest.raises(UserError, match=named):
        compare(list(map(str, change(sources))), output, [])


def test_a_file_of_prompts_has_a_line_per_image(sources, output):
    (sources[0] / "prompts.txt").write_text("a fox\n")
    with pytest.raises(UserError, match=r"prompts\.txt: 1 lines, .* 3"):
        compare(list(map(str, sources)), output, [])


def test_two_runs_show_scores_and_images_of_a_benchmark(tmp_path, output):
    runs = []
    for name in ("a", "b"):
        pictures = Pictures((), [ImageRequest(index, str(index), f"prompt {index}", 2) for index in range(3)])
        task = job.Task(pictures, epath.Path(tmp_path / name / "pictures"))
        job.hold_task(task, {}, {})
        job.evaluate([task], lambda task: StubModel())
        runs.append(str(tmp_path / name))
    compare(runs, output, [])
    page = (output / "images_pictures.html").read_text()
    assert page.count("<article>") == 6 and "prompt 2" in page and "Figures of the sources" in page
    assert (output / "compare.json").exists()
