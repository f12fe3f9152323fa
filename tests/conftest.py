"""What must happen before the package is imported."""

import jaxtyping
from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain reads an absl flag when it starts its threads
jaxtyping.install_import_hook("janus_jax.ops", "beartype.beartype")  # shapes of `ops` are checked at run time
