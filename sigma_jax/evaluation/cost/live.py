"""Memory that a function's values take at its peak, read in its jaxpr: nothing is compiled.

A value lives from the equation that makes it to the last one that reads it. XLA orders equations
otherwise and fuses element-wise ones, so that it needs less, as a rule.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from sigma_jax.evaluation.cost.flops import inside
from sigma_jax.training.fusion import nbytes

Bytes = int


def peak(function: Callable, *arguments: Any) -> Bytes:
    """Bytes of what lives at once at most, the arguments apart.

    Args:
      function: that is called.
      *arguments: may be abstract.

    Returns:
      The bytes.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_jaxpr(jaxpr: Jaxpr) -> Bytes:
    """The same of a jaxpr, its inputs apart.

    Args:
      jaxpr: traced.

    Returns:
      The bytes.
    """
    last = {v: n for n, eqn in enumerate(jaxpr.eqns) for v in _variables(eqn.invars)}
    last |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    live: dict[Any, Bytes] = {}
    most = 0
    for n, eqn in enumerate(jaxpr.eqns):
        made = {v: nbytes(v.aval) for v in eqn.outvars}
        inner = max((of_jaxpr(each) for each in inside(eqn.params)), default=0)
        loops = eqn.primitive.name in ('scan', 'while')  # a step beside what all steps give
        here = sum(made.values()) + inner if loops else max(sum(made.values()), inner)
        most = max(most, sum(live.values()) + here)
        live |= {v: size for v, size in made.items() if last.get(v, -1) > n}
        live = {v: size for v, size in live.items() if last.get(v, -1) > n}
    return most


def _variables(values: Any) -> list[Any]:
    return [v for v in values if not isinstance(v, Literal)]
