"""SigLIP's norms on numbers far from zero, where a variance taken from squares has nothing left."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones.gemma import RMSNorm
from sigma_jax.backbones.siglip import layer_norm
from sigma_jax.sigma import language


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return layer_norm(x, 'norm')


def rows(mean, std, width=64):
    return (mean + std * np.random.default_rng(0).standard_normal((1, 5, width))).astype(np.float32)


@pytest.mark.parametrize(
    ('mean', 'std'), [(0, 1), (3, 1), (1000, 1), (-1000, 1), (3e4, 30), (0.01, 1e-5)]
)
def test_layer_norm_equals_float64_at_any_ratio_of_mean_and_spread(mean, std):
    x = rows(mean, std)
    scale, bias = (
        np.linspace(0.5, 2, 64, dtype=np.float32),
        np.linspace(-1, 1, 64, dtype=np.float32),
    )
    found = Norm().apply({'params': {'norm': {'scale': scale, 'bias': bias}}}, x)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(found, wanted, atol=1e-3 if abs(mean) >= 1000 * std else 1e-5)


def test_layer_norm_computes_in_float32_whatever_comes():
    x = rows(20, 1).astype(jnp.bfloat16)
    found = Norm().apply({'params': {'norm': {'scale': np.ones(64), 'bias': np.zeros(64)}}}, x)
    wide = np.asarray(x, np.float64)
    wanted = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=2**-7)


@pytest.mark.parametrize(('mean', 'std'), [(0, 1), (1000, 1), (3e4, 30)])
def test_gemmas_rms_norm_equals_float64(mean, std):
    """It takes no mean away, so nothing cancels."""
    x, scale = rows(mean, std), np.linspace(-0.5, 1, 64, dtype=np.float32)
    found = RMSNorm(False).apply({'params': {'scale': scale}}, x, None)[0]
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(('mean', 'std'), [(0, 1), (1000, 1)])
def test_sigmas_norm_without_parameters_equals_float64(mean, std, dtype):
    x = rows(mean, std)[0].astype(dtype)
    wide = np.asarray(x, np.float64)
    wanted = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(language._standardised(jnp.asarray(x)), wanted, atol=1e-3)
