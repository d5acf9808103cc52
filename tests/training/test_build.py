"""What a run is put together from: ordered number tokens, frozen leaves."""

import jax.numpy as jnp
import numpy as np

from sigma_jax import trees
from sigma_jax.convert.load_base import Base, init_number_embeddings
from sigma_jax.processing.actions import MIN_STD, action_scaling
from sigma_jax.processing.normalize import compute_statistics
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.training.config import RunConfig
from sigma_jax.training.materialise import make_trainable
from sigma_jax.types import ActionScaling, Frozen
from tests import golden

TABLE = 'PaliGemma/llm/embedder/input_embedding'


def test_number_tokens_start_beside_their_neighbours():
    tokenizer = load_tokenizer('assets/tokenizer/tokenizer.json')
    random = np.random.default_rng(0).normal(size=(tokenizer.vocab_size, 64)).astype(np.float32)
    ordered = init_number_embeddings(trees.unflatten({TABLE: random}), TABLE, tokenizer)
    table = trees.flatten(ordered)[TABLE]
    ids = np.array([tokenizer.encode(f' {n}')[-1] for n in range(256)])
    cosine = table[ids] @ table[ids].T
    np.testing.assert_allclose(np.diagonal(cosine), 1, rtol=1e-5)
    assert np.diagonal(cosine, 1).min() > 0.98 and np.abs(np.diagonal(cosine, 128)).max() < 0.9
    others = np.setdiff1d(np.arange(len(table)), ids)
    assert np.array_equal(table[others], random[others])


def test_frozen_leaves_stay_out_of_the_trainable_tree(golden_params):
    base = Base(golden.config(), golden_params, 'digest')
    frozen = Frozen(golden_params, ActionScaling(*[jnp.ones(6)] * 6))
    config = {
        'objective': 'flow_matching',
        'trainable': ['params'],
        'seed': 0,
        'freeze': ('PaliGemma/img/.*',),
    }
    trainable, kept = make_trainable(RunConfig.from_dict(config), base, None, frozen, None)
    learning, held = set(trees.flatten(trainable['params'])), set(trees.flatten(kept.params))
    assert held == {p for p in trees.flatten(golden_params) if p.startswith('PaliGemma/img/')}
    assert learning == set(trees.flatten(golden_params)) - held and learning
    assert kept.scaling is frozen.scaling


def test_a_joint_that_never_moved_has_a_spread():
    """What residuals are scaled by is never zero, or an error divided by it were no number."""
    values = np.random.default_rng(0).normal(size=(50, 3)) * [0.0, 1.0, 1e-9]
    statistics = {name: compute_statistics(values) for name in ('state', 'actions')}
    spread = action_scaling(statistics, statistics).action_std
    np.testing.assert_allclose(spread, [MIN_STD, values[:, 1].std(), MIN_STD], rtol=1e-6)
