"""XLA's options: none on a CPU, known ones on a GPU."""

import jax

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
