"""Dropout masks of LoRA's side paths differ wherever two of them could be alike: layers,
projections, micro-batches.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones import gemma, pi05
from sigma_jax.nn import layers as shared
from sigma_jax.nn import lora
from sigma_jax.objectives.flow_matching import FlowMatching
from sigma_jax.training.step import accumulated
from sigma_jax.types import Ablation, ActionScaling
from tests import golden, quick
from tests import small_sigma as small

LORA = lora.LoraConfig(('.*einsum(_1)?/w', '.*(gating_einsum|linear)'), rank=2, dropout=0.5)


@pytest.fixture
def masks(monkeypatch):
    """What was dropped, one array a call of `dropout`, in no particular order; inputs are nowhere
    zero.
    """
    found: list[np.ndarray] = []

    def spied(module, x, rate):
        y = shared_dropout(module, jnp.ones_like(x), rate)
        return x * jax.pure_callback(note, jax.ShapeDtypeStruct(y.shape, y.dtype), y)

    def note(y):
        found.append(np.asarray(y) == 0)
        return y

    shared_dropout = shared.dropout
    monkeypatch.setattr(shared, 'dropout', spied)
    monkeypatch.setattr(gemma, 'dropout', spied)
    return found


def backbone(params, key=0, **changes):
    factors = lora.init_factors(jax.random.key(0), params, pi05.LAYOUTS, LORA)
    config = dataclasses.replace(golden.config(), lora=LORA, **changes)
    return pi05.BoundPi05(config, params, factors, jax.random.key(key))


def all_differ(masks):
    jax.effects_barrier()
    alike = [
        (a.shape, b.shape) for a, b in itertools.combinations(masks, 2) if np.array_equal(a, b)
    ]
    return not alike and all(0.2 < mask.mean() < 0.8 for mask in masks)


@pytest.mark.parametrize(
    'changes',
    [{'train_base': True}, {}, {'remat': 'nothing_saveable'}],
    ids=['one scan', 'last apart', 'remat'],
)
def test_every_layer_and_projection_draws_a_mask_of_its_own(golden_params, masks, changes):
    """q, k and v share theirs by design; output, gate with up, and down have one each, and so has
    every expert.
    """
    obs, i = golden.observation(), golden.inputs()
    quick.jit(backbone(golden_params, **changes).velocity)(obs, i['noise'], i['time'])
    depth = golden.config().language.depth
    # output and both halves of the last feed-forward, of the prefix
    unread = 0 if changes.get('train_base') else 3
    assert depth > 1 and all_differ(masks) and len(masks) == depth * 2 * 4 - unread


def test_the_pass_that_sigma_reads_draws_a_mask_a_layer_too(golden_params, masks):
    obs = golden.observation()
    policy = backbone(golden_params)
    quick.jit(policy.encode)(policy.embed_text(obs.prompt), obs.prompt_mask)
    assert all_differ(masks) and len(masks) == 4 * golden.config().language.depth


def micro_batches(parts, rows=4):
    """Masks [parts n] that an objective would draw in `parts` micro-batches of one batch, by way of
    its gradient.
    """

    class Drawing:
        def sample_noise(self, key, batch):
            return batch

        def weight(self, batch):
            return jnp.sum(batch['mask'], dtype=float)

        def __call__(self, trainable, frozen, batch, ablation, key, step):
            kept = jax.random.bernoulli(key, 0.5, (256,))
            return jnp.sum(trainable * kept) * batch['part'][0], {}

    # a digit for each part
    batch = {'mask': np.ones(rows), 'part': np.resize(10.0 ** np.arange(parts), rows)}
    gradient = accumulated(Drawing(), parts)(np.ones(256), None, batch, None, jax.random.key(3), 0)[
        1
    ]
    digits = np.rint(np.asarray(gradient) * parts).astype(int)
    return [digits // 10**n % 10 for n in range(parts)]


@pytest.mark.parametrize('parts', [2, 4])
def test_every_micro_batch_draws_a_mask_of_its_own(parts):
    masks = micro_batches(parts)
    assert all(set(mask.tolist()) == {0, 1} for mask in masks)
    for one, other in itertools.combinations(masks, 2):
        assert 0.35 < np.mean(one == other) < 0.65, 'as often alike as two coins'


def test_flow_matching_draws_dropout_from_the_step_s_key(golden_params):
    """Times and noise given, nothing but dropout is left to the key."""
    i, objective = (
        golden.inputs(),
        FlowMatching(dataclasses.replace(golden.config(), lora=LORA)),
    )
    rows = jax.tree.map(lambda x: x[:1, :1].repeat(3, 0), small.make_batch())
    rows = rows.replace(
        observation=jax.tree.map(lambda x: x[:, None], golden.observation()),
        actions=i['actions'][:, None],
        action_mask=np.ones((3, 1, 10), bool),
        time=i['time'][:, None],
        noise=i['noise'][:, None],
    )
    ranges = {
        'action_std': 1.0,
        'low': -2.0,
        'span': 3.0,
        'state_low': -1.0,
        'state_span': 4.0,
        'relative': 0.0,
    }
    scaling = ActionScaling(**{k: np.full(8, x, 'f') for k, x in ranges.items()})
    frozen = small.frozen().replace(params=golden_params, scaling=scaling)
    factors = lora.init_factors(jax.random.key(0), golden_params, pi05.LAYOUTS, LORA)
    factors = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), factors
    )
    loss = quick.jit(lambda key: objective({'lora': factors}, frozen, rows, Ablation(), key, 0)[0])
    values = [float(loss(jax.random.key(n))) for n in (0, 0, 1, 2)]
    assert values[0] == values[1] and len(set(values)) == 3
