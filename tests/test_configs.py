"""Every full-size config describes a step that can be traced; nothing is allocated."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from sigma_jax import trees
from sigma_jax.nn import quant
from sigma_jax.training import memory_check
from sigma_jax.training.config import RunConfig
from sigma_jax.types import Ablation

GIB = 2**30


@pytest.mark.parametrize(
    ('name', 'windows', 'base_gib'),
    [('pi05_lora', (8, 1), 6.25), ('sigma_pi05', (8, 4), 5.45), ('sigma_pi05_qlora', (8, 4), 2.74)],
)
def test_a_full_size_config_describes_a_step(name, windows, base_gib):
    config = importlib.import_module(f'configs.{name}').get_config().to_dict()
    job, _ = memory_check.make_job(RunConfig.from_dict(config))
    assert quant.size(job.frozen.params) / GIB == pytest.approx(base_gib, abs=0.005), (
        'its docstring says so'
    )
    assert job.batch.mask.shape == windows and job.batch.observation.images.shape[-2] == 224
    inputs = (
        job.trainable,
        job.frozen,
        job.batch,
        Ablation(),
        jax.eval_shape(lambda: jax.random.key(0)),
        jnp.int32(0),
    )
    loss, metrics = jax.eval_shape(job.objective, *inputs)
    assert loss.shape == () and loss.dtype == jnp.float32 and metrics
    factors = trees.flatten(job.trainable['lora'])
    assert len(factors) == (12 if name == 'pi05_lora' else 6)
    if 'sigma' in job.trainable:
        assert 2e8 < trees.count(job.trainable['sigma']) < 3.5e8
        assert not any('_1/' in path for path in factors), (
            'Sigma does not act through the action expert'
        )
