"""Worker processes of the stream and of prepare_data start often, so what they import must be small."""

import subprocess
import sys

from tests.helpers import REPOSITORY

CODE = """
import sys
import janus_jax.data.formats.registry, janus_jax.data.preparation.beam_pipeline, janus_jax.data.sample_builder
HEAVY = ("jax", "flax", "grain", "apache_beam", "pyarrow", "tensorflow_datasets")
print([name for name in HEAVY if name in sys.modules])
import janus_jax.data.packed_rows, janus_jax.data.square_images
print([name for name in ("flax", "janus_jax.models", "janus_jax.inference") if name in sys.modules])
"""


def test_data_modules_import_neither_models_nor_what_only_some_formats_need():
    result = subprocess.run(
        [sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.splitlines() == ["[]", "[]"]
