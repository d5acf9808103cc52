"""What XLA makes again inside the fusions that read it, instead of keeping it: a rule over
jaxprs.
"""

import re
from typing import Any

import jax
from jax.extend import core

# Outputs of these cost XLA nothing to make again where they are read: it fuses them into their
# readers.
FUSED = re.compile(
    r'abs|add|add_any|and|broadcast_in_dim|ceil|clamp|convert_element_type|copy|cos|div|eq|erf|exp'
    r'|exp2|expand_dims|floor|ge|gt|integer_pow|iota|is_finite|le|log|log1p|log2|logistic|lt|max'
    r'|min|mul|ne|neg|not|one_minus_square|or|pow|real|reduce_precision|rem|reshape|rsqrt|select_n'
    r'|shift_\w+|sign|sin|slice|sqrt|square|squeeze|stop_gradient|sub|tanh|transpose|xor'
)
# The same of StableHLO: versions of JAX have ever other primitives, and all of them are lowered to
# this smaller set.
FUSED_WHEN_LOWERED = re.compile(
    r'chlo\.(?!top_k)\w+|stablehlo\.(abs|add|and|atan2|bitcast_convert|broadcast_in_dim|cbrt|ceil'
    r'|clamp|compare|constant|convert|cosine|count_leading_zeros|divide|exponential(_minus_one)?'
    r'|floor|is_finite|log(_plus_one)?|logistic|maximum|minimum|multiply|negate|not|or|popcnt|power'
    r'|real|reduce_precision|remainder|reshape|round_\w+|rsqrt|select|shift_\w+|sign|sine|sqrt'
    r'|subtract|tan|tanh|xor)'
)
CALLS = (
    'jit',
    'pjit',
    'closed_call',
    'core_call',
    'custom_jvp_call',
    'custom_vjp_call',
    'eval_jaxpr',
)


def nbytes(leaf: Any) -> int:
    """Bytes of an array or of what has its shape and dtype; a random key has two words, a token of
    an effect none.

    Args:
      leaf: an array, or a shape.

    Returns:
      Bytes.
    """
    if not hasattr(leaf, 'dtype'):
        return 0
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8 * leaf.size
    return leaf.size * leaf.dtype.itemsize


def sources(jaxpr: Any, known: dict | None = None) -> dict[Any, dict[Any, int]]:
    """What fusions read to make each value of a jaxpr.

    Args:
      jaxpr: traced.
      known: sources of its inputs; the others lie on the device anyway.

    Returns:
      {value: {value that is read: bytes}}.
    """
    found: dict = {v: {} for v in (*jaxpr.invars, *jaxpr.constvars)} | (known or {})

    def of(atom: Any) -> dict:
        return {} if isinstance(atom, core.Literal) else found[atom]

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in CALLS and (inner := _inner(eqn)) is not None:
            inside = sources(inner, dict(zip(inner.invars, map(of, eqn.invars), strict=True)))
            for outer, v in zip(eqn.outvars, inner.outvars, strict=True):
                found[outer] = {} if isinstance(v, core.Literal) else inside[v]
        elif FUSED.fullmatch(name) or element_wise(eqn):
            joined: dict = {}
            for atom in eqn.invars:
                joined |= of(atom)
            found |= dict.fromkeys(eqn.outvars, joined)
        else:
            found |= {v: {v: nbytes(v.aval)} for v in eqn.outvars}
    return found


def _inner(eqn: Any) -> Any:
    closed = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
    inner = getattr(closed, 'jaxpr', closed)
    fits = inner is not None and (len(inner.invars), len(inner.outvars)) == (
        len(eqn.invars),
        len(eqn.outvars),
    )
    return inner if fits else None


def element_wise(eqn: Any) -> bool:
    """Whether an equation of an unknown name makes each element from those at its place alone, and
    cheaply.

    Its results have the shape of its operands, and it is lowered to such operations only: to no
    loop, sum, product or call. What cannot be lowered here is none.

    Args:
      eqn: of a jaxpr.

    Returns:
      Whether it does.
    """
    given, made = (
        [getattr(v.aval, 'shape', ()) for v in values] for values in (eqn.invars, eqn.outvars)
    )
    if len({*filter(None, given), *made}) != 1 or not all(made) or _has_program(eqn.params):
        return False
    try:
        operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        text = (
            jax.jit(lambda *args: eqn.primitive.bind(*args, **eqn.params))
            .lower(*operands)
            .as_text()
        )
    except Exception:  # whatever a primitive of another library raises where it cannot run
        return False
    return all(
        FUSED_WHEN_LOWERED.fullmatch(name) for name in re.findall(r'\b(?:stable|c)hlo\.\w+', text)
    )


def _has_program(params: Any) -> bool:
    return any(isinstance(x, (core.Jaxpr, core.ClosedJaxpr)) for x in jax.tree.leaves(params))
