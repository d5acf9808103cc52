"""XLA's options: none on a CPU, known ones on a GPU; rows that are computed alone on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax import xla


def test_xla_is_asked_for_other_things_on_a_gpu(monkeypatch):
    assert xla.options() == {}
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert xla.options() == {
        'xla_gpu_enable_triton_gemm': False,
        'xla_gpu_enable_dynamic_slice_fusion': False,
    }
    options = xla.options(triton=True)
    assert options['xla_gpu_enable_triton_gemm'] is True
    monkeypatch.undo()
    jax.jit(lambda x: x, compiler_options=options)(1.0)  # XLA knows their names, on a CPU too


def test_jit_hands_on_what_it_is_given(monkeypatch):
    monkeypatch.setattr(jax, 'jit', lambda function, **arguments: (function, arguments))
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    function, given = xla.jit(abs, triton=True, donate_argnums=0)
    assert function is abs
    assert given == {'compiler_options': xla.options(triton=True), 'donate_argnums': 0}


@pytest.mark.parametrize('count', [1, 2, 5])
def test_a_row_has_the_same_bits_whatever_comes_with_it(count):
    """On a CPU; a number that is in each row counts as part of it."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, 48)).astype(np.float32)
    rows = {'x': rng.standard_normal((5, 7, 64)).astype(np.float32), 'shift': np.arange(5)}

    def rowwise(rows):
        found = jnp.tanh(rows['x'] @ weights) @ weights.T * 0.3 + rows['shift'][:, None, None]
        return {'found': found, 'large': found > 1}

    every = xla.jit(xla.row_by_row(rowwise))
    want = every(rows)
    got = every(jax.tree.map(lambda x: x[:count], rows))
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y[:count]), got, want))
    np.testing.assert_allclose(want['found'], rowwise(rows)['found'], rtol=1e-5, atol=1e-5)
    assert want['large'].dtype == bool and want['large'].any()


def test_elsewhere_rows_are_computed_together(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert xla.row_by_row(abs) is abs
