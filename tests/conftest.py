"""What must happen before the package is imported."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also of commands: with libtpu installed, JAX would look for TPUs

import jax
import jaxtyping
from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain reads an absl flag when it starts its threads
jaxtyping.install_import_hook("janus_jax.ops", "beartype.beartype")  # shapes of `ops` are checked at run time
jax.config.update("jax_disable_most_optimizations", True)  # tests wait for the compiler, not for its result
