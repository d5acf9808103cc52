"""Compiled programs kept on disk, so that a run that starts again compiles nothing (JAX's persistent cache)."""

import os
import pathlib

import jax


def keep_programs(folder: str) -> None:
    """Keeps what takes more than a second to compile in `folder`; '' keeps nothing.

    Only scripts call this: the library alone leaves no files. A cache that the user has set up for JAX
    (JAX_COMPILATION_CACHE_DIR) stays as it is; one that cannot be read or written costs a warning and the compile time.
    """
    if folder and jax.config.values['jax_compilation_cache_dir'] is None:
        jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(os.path.expandvars(folder)).expanduser()))
