"""The training data of the quickstart, written as `launch.prepare_data` does: records, text tokenizer, image codes.

The last records of each task show held-out images: `data.held_out` of a run keeps the end of each source.
"""

from etils import epath

from examples.digits import data as digits
from janus_jax.data.formats.array_record_files import ArrayRecordFiles
from janus_jax.data.formats.memory import Memory
from janus_jax.data.preparation.job import make_job
from janus_jax.data.preparation.record import RecordSettings
from janus_jax.data.preparation.writer import prepare
from janus_jax.data.tokenizer import FILE_NAME
from janus_jax.inference.image_tokenizer import load_image_tokenizer
from janus_jax.models.presets import JANUS_PRO_DIGITS

VALIDATION_RECORDS = 60  # Number of held-out records of each task that validation reads.
RECORDS, CODES = "records", "codes"  # folders
NUM_FILES = 4  # Number of files of each task.
CODE_BATCH = 128  # Number of images that are encoded at once.


def write_records(folder: epath.Path, training: digits.Digits, held_out: digits.Digits) -> None:
    """Writes FOLDER/records, and FOLDER/tokenizer.json, which is trained on the texts of the training records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = digits.all_records(training)
    tokenizer = digits.build_tokenizer(records, JANUS_PRO_DIGITS.llama.vocab_size, JANUS_PRO_DIGITS.prompt_style)
    tokenizer.save(folder / FILE_NAME)
    records += digits.held_out_records(held_out, VALIDATION_RECORDS)
    dataset = Memory(name="digits", records=tuple(records))
    prepare(make_job(dataset, folder / RECORDS, RecordSettings(), num_output_files=NUM_FILES))


def write_codes(folder: epath.Path, image_tokenizer: epath.Path) -> None:
    """Writes FOLDER/codes: the records of images to generate, with the VQ codes that a trained tokenizer gives them."""
    encode = load_image_tokenizer(image_tokenizer)
    settings = RecordSettings(code_size=encode.config.image_size, code_batch=CODE_BATCH)
    dataset = ArrayRecordFiles(input=(str(folder / RECORDS / "generate-*"),))
    job = make_job(dataset, folder / CODES, settings, num_output_files=NUM_FILES, image_tokenizer=encode.sha256)
    prepare(job, encode)


def sources(folder: epath.Path, tasks: list[str], *, stored_codes: bool) -> dict[str, tuple[str, ...]]:
    """The value of `data.sources` for these tasks."""
    folders = {task: CODES if stored_codes and task == "generate" else RECORDS for task in tasks}
    return {task: (str(folder / name / f"{task}-*.array_record"),) for task, name in folders.items()}
