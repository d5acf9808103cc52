"""Micro-batches count by what they hold, a batch in parts is the batch: on losses small enough to
be worked out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.objectives.sigma import SigmaObjective
from sigma_jax.sigma.curriculum import CurriculumConfig
from sigma_jax.sigma.losses import LossConfig
from sigma_jax.training.step import accumulated, divide
from tests import golden
from tests import small_sigma as small

TARGETS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], np.float32)


class Mean:
    """Half the mean squared distance of a number to the targets that count."""

    def sample_noise(self, key, batch):
        return batch

    def weight(self, batch):
        return jnp.sum(batch['mask'], dtype=float)

    def __call__(self, trainable, frozen, batch, ablation, key, step):
        loss = (
            jnp.sum(batch['mask'] * (trainable - batch['x']) ** 2)
            / jnp.maximum(jnp.sum(batch['mask']), 1)
            / 2
        )
        return loss, {'count': jnp.sum(batch['mask'], dtype=jnp.float32)}


@pytest.mark.parametrize('parts', [2, 3, 6])
@pytest.mark.parametrize(
    'mask',
    [[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0], [0] * 6],
    ids=str,
)
def test_parts_with_unequal_counts_are_weighted_by_them(parts, mask):
    """A part without a valid row counts nothing; none valid at all gives zero and no NaN."""
    batch = {'x': TARGETS, 'mask': np.array(mask, np.float32)}
    (loss, _), gradient = accumulated(Mean(), parts)(
        jnp.float32(3), None, batch, None, jax.random.key(0), 0
    )
    count = max(sum(mask), 1)
    np.testing.assert_allclose(loss, np.sum(mask * (3 - TARGETS) ** 2) / count / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, np.sum(mask * (3 - TARGETS)) / count, rtol=1e-6)


def test_a_part_takes_every_nth_row():
    assert divide(np.arange(6), 3).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_weights_count_what_each_loss_averages_over():
    """Flow matching: valid steps of valid windows; Sigma: valid windows."""
    batch = small.make_batch()  # two padding steps in a valid window, one padding window
    objectives = FlowMatching(golden.config()), small.sigma_objective()
    windows = small.B * small.G - 1
    assert [float(objective.weight(batch)) for objective in objectives] == [
        windows * small.T - 2,
        windows,
    ]
    sigma = SigmaObjective(small.PI05, small.SIGMA, LossConfig(), CurriculumConfig())
    assert float(sigma.weight(batch.replace(mask=batch.mask & False))) == 0
