"""What must happen before the package is imported, and the options of the tests."""

import os
from pathlib import Path

# Commands keep the programs that they compile in the user's cache folder; those of tests keep theirs here.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "xdg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also for commands: with libtpu installed, JAX would look for TPUs

import jax
import jaxtyping
from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain reads an absl flag when it starts its threads
jaxtyping.install_import_hook("janus_jax.ops", "beartype.beartype")  # shapes of `ops` are checked at run time


def pytest_addoption(parser):
    parser.addoption(
        "--xla_optimizations",
        action="store_true",
        help="Leave XLA's optimisations on, as users run the programs. Tests then take several times as long.",
    )


def pytest_configure(config):
    if not config.getoption("xla_optimizations"):
        jax.config.update("jax_disable_most_optimizations", True)  # tests wait for the compiler, not for its result
