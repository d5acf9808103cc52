"""`jit` for tests: compile time counts for more than run time on graphs this small."""

import functools

import jax

_OPTIONS = {
    # by far the largest part of compiling a large graph of tiny operations
    'xla_cpu_use_fusion_emitters': False,
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
}


@functools.cache
def _options() -> dict | None:
    """The options above, or None where this version of XLA knows one of them no longer."""
    try:
        jax.jit(lambda x: x + 1).lower(0.0).compile(_OPTIONS)
    except Exception:
        return None
    return _OPTIONS


def jit(function, **arguments):
    """`jax.jit` with a third of its compile time and slower code."""
    return jax.jit(function, compiler_options=_options(), **arguments)
