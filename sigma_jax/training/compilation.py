"""Starting fast: compiled programs kept on disk (JAX's persistent cache), tracing undisturbed."""

import contextlib
import gc
import os
import pathlib
from collections.abc import Iterator

import jax


def enable_compilation_cache(folder: str, least_s: float = 1.0) -> None:
    """Keeps on disk what takes long to compile.

    Only the front door calls this, where a config names a folder: the rest leaves no files. A cache
    that the user has set up for JAX (JAX_COMPILATION_CACHE_DIR) stays as it is; one that cannot be
    read or written costs a warning and the compile time.

    Args:
      folder: of the cache; '': nothing is kept.
      least_s: seconds from which on a program is kept.
    """
    if folder and jax.config.values['jax_compilation_cache_dir'] is None:
        least = 'jax_persistent_cache_min_compile_time_secs'
        jax.config.update(least, min(least_s, jax.config.values[least]))
        jax.config.update(
            'jax_compilation_cache_dir', str(pathlib.Path(os.path.expandvars(folder)).expanduser())
        )


@contextlib.contextmanager
def gc_disabled() -> Iterator[None]:
    """No garbage collection within the block: for the first call of a jitted function, which traces
    and compiles it.

    Tracing makes millions of objects that stay; to look through them again and again takes a fifth
    of its time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
