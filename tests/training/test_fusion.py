"""Which operations cost nothing to make again, also those that the version of JAX at hand does not
have.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from jax.interpreters import mlir

from sigma_jax.training import fusion


def unheard_of(lower=None, *, of=lambda shape: shape) -> core.Primitive:
    """An operation that no version of JAX has; `lower` says what it computes, `of` the shape of its
    result.
    """
    primitive = core.Primitive('unheard_of')
    primitive.def_abstract_eval(lambda x, *more: x.update(shape=of(x.shape)))
    if lower is not None:
        mlir.register_lowering(primitive, mlir.lower_fun(lower, multiple_results=False))
    return primitive


UNHEARD_OF = {  # name: (operation, whether XLA makes its elements again where they are read)
    'polynomial': (unheard_of(lambda x: (x * x - 1.0) * x + 2.0), True),
    'logarithm': (unheard_of(lambda x: jnp.log(jnp.abs(x)) / jnp.log(2.0)), True),
    'special function': (unheard_of(jax.lax.erf_inv), True),
    'bits': (
        unheard_of(lambda x: jax.lax.bitcast_convert_type(x, jnp.int32).astype(x.dtype)),
        True,
    ),
    'along an axis': (unheard_of(lambda x: jnp.cumsum(x, 1)), False),
    'order': (unheard_of(lambda x: jnp.sort(x, 0)), False),
    'product': (unheard_of(lambda x: x @ x), False),
    'loop': (unheard_of(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y * x, x)), False),
    'barrier': (unheard_of(jax.lax.optimization_barrier), False),
    'sum': (unheard_of(lambda x: x.sum(1), of=lambda shape: shape[:1]), False),
    'for another machine': (unheard_of(), False),
}


@pytest.mark.parametrize('name', UNHEARD_OF)
def test_an_unheard_of_operation_counts_by_what_it_is_lowered_to(name):
    operation, again = UNHEARD_OF[name]
    traced = jax.make_jaxpr(lambda x: jnp.sin(operation.bind(jnp.tanh(x @ x) * 2.0)))(
        jnp.ones((8, 8))
    )
    (made,) = [eqn for eqn in traced.eqns if eqn.primitive is operation]
    assert fusion.element_wise(made) is again
    (product,) = [eqn for eqn in traced.eqns if eqn.primitive.name == 'dot_general']
    (source,) = fusion.sources(traced.jaxpr)[traced.jaxpr.outvars[0]]
    assert source is (product if again else made).outvars[0]


def test_an_unheard_of_operation_among_many_operands():
    """Numbers may stand beside arrays; with an operand of another shape, elements come from
    elsewhere.
    """
    operation = unheard_of(lambda x, *more: x + sum(more))
    x, row = jnp.ones((4, 8)), jnp.ones((1, 8))
    alike, uneven = jax.make_jaxpr(
        lambda x, row: (operation.bind(x, 2.0, x), operation.bind(x, row))
    )(x, row).eqns
    assert fusion.element_wise(alike) and not fusion.element_wise(uneven)


def test_a_call_is_looked_into_and_one_with_other_operands_than_its_program_is_kept():
    """`eval_jaxpr` is the name of JAX 0.12 for a call; a program with further inputs is no plain
    one.
    """
    inner = jax.make_jaxpr(lambda x: jnp.sin(x) + 1.0)(jnp.ones((4, 4)))
    call = core.Primitive('eval_jaxpr')
    call.def_abstract_eval(lambda x, *more, call_jaxpr: x)
    for more in ((), (2.0,)):
        traced = jax.make_jaxpr(lambda x, *more: call.bind(x @ x, *more, call_jaxpr=inner))(
            jnp.ones((4, 4)), *more
        )
        product, made = traced.eqns
        (source,) = fusion.sources(traced.jaxpr)[traced.jaxpr.outvars[0]]
        assert source is (made if more else product).outvars[0]


def test_a_token_takes_no_room():
    assert fusion.nbytes(object()) == 0
    assert fusion.nbytes(jax.random.split(jax.random.key(0), 3)) == 24
    assert fusion.nbytes(jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)) == 12


def test_an_operation_that_carries_a_program_is_no_element_wise_one():
    looped = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x))(
        jnp.ones((4, 8))
    )
    assert not any(fusion.element_wise(eqn) for eqn in looped.eqns)
