"""The flag of the commands that keep compiled programs between runs (`program_cache`).

A command calls `flags.adopt_module_key_flags(compilation_cache)` to show it in its --help.
"""

import os

from absl import flags

from launch.cli.program_cache import folder_of_machine, keep_programs

CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs between runs, or off. The default is janus_jax/programs in the user's cache "
    "folder, $XDG_CACHE_HOME or ~/.cache.",
)


def enable() -> None:
    """Keeps the programs of this command, unless --compilation_cache=off or it is one of several processes.

    Without the flag, a folder in $JAX_COMPILATION_CACHE_DIR comes first, which JAX itself uses. Raises OSError for a
    folder of the flag that cannot be written.
    """
    import jax  # not before a command has checked its flags: the import takes long

    given = CACHE.value is not None
    if CACHE.value == "off" or (not given and "JAX_COMPILATION_CACHE_DIR" in os.environ) or jax.process_count() > 1:
        return
    try:
        keep_programs(folder_of_machine(CACHE.value))
    except OSError:  # such as a home folder that cannot be written: programs are then compiled in each run
        if given:
            raise
