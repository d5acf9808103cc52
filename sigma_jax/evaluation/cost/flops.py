"""Arithmetic of a function, counted in its jaxpr: products and sums of matrix products and
convolutions.

Counted before compilation, so the same on every device but for keys that a GPU's attention is
filled up with (`nn.pad_keys_to_tile`); a scan counts as often as it runs, of branches the dearest.
Elementwise work, under a hundredth of a transformer's, is left out.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count(function: Callable, *arguments: Any) -> int:
    """Floating-point operations of a call; only shapes are read.

    What is compiled already is traced as it is: inside another trace JAX refuses options for XLA
    (`xla.options`).

    Args:
      function: that is called.
      *arguments: may be abstract.

    Returns:
      The count.
    """
    compiled = function if hasattr(function, 'trace') else jax.jit(function)
    return of_jaxpr(compiled.trace(*arguments).jaxpr.jaxpr)


def of_jaxpr(jaxpr: Jaxpr) -> int:
    """Operations of all equations; a `while` without a known end counts once.

    Args:
      jaxpr: traced.

    Returns:
      The count.
    """
    return sum(of_equation(equation) for equation in jaxpr.eqns)


def of_equation(equation: JaxprEqn) -> int:
    """Operations of one equation, those inside it included.

    Args:
      equation: of a jaxpr.

    Returns:
      The count.
    """
    name = equation.primitive.name
    if name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        shape = shape_of(equation.invars[0])
        return (
            2
            * math.prod(shape_of(equation.outvars[0]))
            * math.prod(shape[axis] for axis in contracted)
        )
    if name == 'conv_general_dilated':
        kernel, layout = shape_of(equation.invars[1]), equation.params['dimension_numbers'].rhs_spec
        return 2 * math.prod(shape_of(equation.outvars[0])) * math.prod(kernel) // kernel[layout[0]]
    # fused, on a GPU; backward: the products that plain attention takes
    if name.startswith('dot_product_attention'):
        (b, t, n, h), keys = shape_of(equation.invars[0]), shape_of(equation.invars[1])[1]
        return (8 if '_bwd' in name else 4) * b * t * keys * n * h
    inner = [of_jaxpr(jaxpr) for jaxpr in inside(equation.params)]
    if name == 'cond':
        return max(inner)
    return sum(inner) * (equation.params['length'] if name == 'scan' else 1)


def shape_of(variable: Any) -> tuple[int, ...]:
    """The shape of an operand or a result.

    Args:
      variable: of a jaxpr.

    Returns:
      The shape.
    """
    return variable.aval.shape


def inside(params: dict[str, Any]) -> list[Jaxpr]:
    """The functions that an equation calls.

    Args:
      params: of the equation.

    Returns:
      Their jaxprs.
    """
    values = [
        x
        for value in params.values()
        for x in (value if isinstance(value, tuple | list) else [value])
    ]
    return [
        x.jaxpr if isinstance(x, ClosedJaxpr) else x
        for x in values
        if isinstance(x, ClosedJaxpr | Jaxpr)
    ]
