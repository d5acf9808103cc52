"""Sigma as a whole: identities, gates, gradients, memory, invariances (docs/design.md, "The two
passes").
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones.pi05 import BoundPi05
from sigma_jax.sigma.model import (
    Sigma,
    SigmaConfig,
    embed_observation,
    initial_carry,
    window_keys,
)
from sigma_jax.types import Ablation, Actions, Batch, Carry, Observation
from tests import golden, quick
from tests.numpy_layers import close
from tests.toy_backbone import ToyBackbone

B, G, A, T, L, W = 3, 4, 3, 4, 3, 16
ACTION_STD = np.array([2.0, 0.5, 10.0], np.float32)
CONFIG = SigmaConfig(
    d_model=W,
    state_dim=A,
    action_dim=A,
    horizon=T,
    chunk=2,
    d_tau=4,
    num_factors=2,
    num_visual=3,
    num_state=2,
    heads=2,
    vision_blocks=1,
    state_hidden=8,
    patch_size=4,
    audio_patch=4,
    use_depth=True,
    use_audio=True,
    action_width=8,
    action_heads=2,
    num_queries=2,
    query_blocks=1,
    token_dim=4,
    trajectory_blocks=1,
    refinement_steps=2,
)
BACKBONE = ToyBackbone(W)


def make_batch(g=G, seed=0):
    """Random windows; each row has one padded text token, one row lacks its second camera."""
    rng = np.random.default_rng(seed)
    lead = (B, g)
    tokens, mask = rng.integers(0, 16, (*lead, L)), np.ones((*lead, L), bool)
    mask[..., -1] = False
    image_mask = np.ones((*lead, 2), bool)
    image_mask[1, :, 1] = False
    observation = Observation(
        images=rng.integers(0, 256, (*lead, 2, 8, 8, 3)).astype(np.uint8),
        image_mask=image_mask,
        prompt=tokens,
        prompt_mask=mask,
        text=tokens,
        text_mask=mask,
        state=rng.standard_normal((*lead, A)).astype(np.float32),
        depth=rng.standard_normal((*lead, 2, 8, 8, 1)).astype(np.float32),
        audio=rng.standard_normal((*lead, 6)).astype(np.float32),
    )
    base = rng.standard_normal((*lead, T, A)).astype(np.float32)
    base[..., 0, 0] = -0.0
    zeros = np.zeros(lead, np.int32)
    return Batch(
        observation=observation,
        actions=base + rng.standard_normal(base.shape).astype(np.float32),
        action_mask=np.ones((*lead, T), bool),
        base=base,
        reset=zeros > 0,
        mask=zeros == 0,
        text_id=zeros,
        episode=zeros + np.arange(B)[:, None],
        frame=zeros + np.arange(g),
    )


def embedded(batch, config=CONFIG, backbone=BACKBONE):
    return batch.replace(observation=embed_observation(backbone, batch.observation, config))


def sequence(
    params,
    batch,
    ablation,
    carry=None,
    key=None,
    config=CONFIG,
    backbone=BACKBONE,
    action_std=ACTION_STD,
):
    """All windows of a batch -> (carry, output)."""
    inputs = backbone, embedded(batch, config, backbone), carry, ablation, action_std
    return Sigma(config).apply({'params': params}, *inputs, key=key, method='sequence')


def stepped(params, batch, ablation, carry=None, config=CONFIG):
    """The same one window at a time, the carry handed on from outside."""

    @quick.jit
    def step(params, window, carry):
        inputs = BACKBONE, window, carry, ablation, ACTION_STD
        return Sigma(config).apply({'params': params}, *inputs)

    windows, outputs = embedded(batch, config), []
    for j in range(batch.reset.shape[1]):
        carry, output = step(params, jax.tree.map(lambda x, j=j: x[:, j], windows), carry)
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x, 1), *outputs)


def init(key, batch, config=CONFIG, backbone=BACKBONE, action_std=ACTION_STD):
    """Untrained parameters."""
    first = embedded(jax.tree.map(lambda x: x[:, 0], batch), config, backbone)
    return Sigma(config).init(key, backbone, first, None, Ablation(), action_std)['params']


def paths(tree):
    return {
        jax.tree_util.keystr(k, simple=True, separator='/'): x
        for k, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def same(one, other):
    """Bitwise equality of two trees."""
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def gates(**values):
    """An ablation of arrays, so that every row shares one compiled program."""
    return jax.tree.map(jnp.float32, Ablation(**values))


@pytest.fixture(scope='module')
def batch():
    return make_batch()


@pytest.fixture(scope='module')
def untrained(batch):
    return quick.jit(init)(jax.random.key(0), batch)


@pytest.fixture(scope='module')
def params(untrained):
    """No zero hides a path."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.float32(x + 0.3 * rng.standard_normal(x.shape)), jax.device_get(untrained)
    )


@pytest.fixture(scope='module')
def run():
    return quick.jit(sequence)


@pytest.fixture(scope='module')
def gradients():
    """Gradient of a random direction in the actions, as a function of parameters, batch and
    gates.
    """

    def total(params, batch, ablation):
        _, output = sequence(params, batch, ablation)
        return sum(
            jnp.sum(jnp.sin(7.0 * jnp.arange(x.size)) * x.reshape(-1))
            for x in jax.tree.leaves(output.actions)
        )

    return quick.jit(jax.grad(total))


def replaced(params, **changes):
    """`params` with the leaves whose path matches replaced by a function of them."""
    return jax.tree_util.tree_map_with_path(
        lambda k, x: functools.reduce(
            lambda y, c: (
                c[1](y)
                if re.search(c[0], jax.tree_util.keystr(k, simple=True, separator='/'))
                else y
            ),
            changes.items(),
            x,
        ),
        params,
    )


@pytest.mark.parametrize(
    'values', [{}, {'memory': 0.0}, {'tau_const': 1.0}, {'tau': 0.0, 'film': 0.0}]
)
@pytest.mark.parametrize('handed_on', [True, False])
def test_windows_at_once_equal_windows_one_by_one(batch, untrained, run, values, handed_on):
    """The memory alone runs through them in order; it starts anew where a window says so, and is
    handed on from outside, or begins empty.
    """
    moved = jax.tree.map(lambda x: x + 0.02, untrained)
    again = dataclasses.replace(batch, reset=np.eye(B, G, k=1, dtype=bool))
    carry = jax.tree.map(lambda x: x + 0.3, initial_carry(CONFIG, B)) if handed_on else None
    both = [way(moved, again, gates(**values), carry) for way in (run, stepped)]
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)
    assert np.ptp(both[0][1].telepathy.memory, axis=1).max() > 1e-3


def test_recurrent_windows_stepped_from_outside_equal_the_whole_sequence(batch, params):
    config = dataclasses.replace(CONFIG, feedback='recurrent')
    again = dataclasses.replace(batch, reset=np.eye(B, G, k=2, dtype=bool))
    whole = quick.jit(functools.partial(sequence, config=config))(params, again, gates())
    steps = stepped(params, again, gates(), config=config)
    for one, other in zip(*map(jax.tree.leaves, (whole, steps)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)
    assert np.ptp(whole[1].vision_pool, axis=1).max() > 1e-3


def test_untrained_sigma_returns_the_base_bitwise(run, untrained, batch):
    _, output = run(untrained, batch, gates())
    expected = Actions.from_trajectory(batch.base, CONFIG.chunk)
    for got, want in zip(jax.tree.leaves(output.actions), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(np.asarray(got).view(np.int32), want.view(np.int32))


def test_untrained_sigma_on_the_golden_pi05_returns_the_base_bitwise(golden_params):
    observation = jax.tree.map(lambda x: jnp.asarray(x)[:, None], golden.observation())
    backbone = BoundPi05(golden.config(), golden_params)
    config = dataclasses.replace(
        CONFIG,
        d_model=backbone.width,
        state_dim=8,
        d_tau=64,
        use_depth=False,
        use_audio=False,
        heads=4,
    )
    batch = dataclasses.replace(make_batch(g=1), observation=observation)

    @quick.jit
    def forward(batch):
        params = init(jax.random.key(0), batch, config, backbone)
        return sequence(params, batch, Ablation(), config=config, backbone=backbone)[1]

    output = forward(batch)
    assert np.array_equal(np.asarray(output.actions.traj).view(np.int32), batch.base.view(np.int32))
    assert 0.035 < np.sqrt(np.mean(output.telepathy.tau**2)) < 0.065
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(output))


def test_every_parameter_has_a_gradient_within_five_steps(gradients, untrained, batch):
    params, alive = untrained, {}
    for _ in range(5):
        step = gradients(params, batch, gates())
        alive = {k: alive.get(k, False) or bool(np.any(x)) for k, x in paths(step).items()}
        params = jax.tree.map(
            lambda x, g: np.asarray(x) - np.float32(0.01) * np.sign(g), params, step
        )
    assert [k for k, live in alive.items() if not live] == []


def test_parameters_have_the_papers_names(untrained):
    names = set(paths(untrained))
    assert not [name for name in names if re.search(r'[A-Z]', name)]
    for name in (
        'vision/resampler/w_q',
        'vision/modulator/theta_t',
        'vision/modulator/theta_mod',
        'vision/blocks_0/ffn/w_1',
        'language/memory/w_lambda',
        'language/telepathy_projector/w_1',
        'language/tau_const',
        'language/modulator/theta_lang',
        'action/query_generator/seed',
        'action/trajectory/out/kernel',
        'action/token_head/detokenizer/kernel',
        'action/residual_head/mlp/w_2',
    ):
        assert name in names
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(untrained))


def test_full_size_heads_stay_under_350_million_parameters():
    config = SigmaConfig(d_model=2048, state_dim=6, action_dim=6, use_depth=True, use_audio=True)
    images = jnp.zeros((1, 1, 2, 224, 224, 3), jnp.uint8)
    batch = jax.tree.map(lambda x: x[:1, :1], make_batch())
    observation = batch.observation.replace(
        images=images,
        state=np.zeros((1, 1, 6)),
        depth=images[..., :1] * 1.0,
        audio=np.zeros((1, 1, 16000)),
    )
    batch = batch.replace(observation=observation, base=np.zeros((1, 1, 16, 6)))

    class Stub(ToyBackbone):
        def encode_images(self, images):
            return jnp.zeros((1, 512, 2048))

        def embed_text(self, tokens):
            return jnp.zeros((*tokens.shape, 2048))

        def encode(self, embeddings, mask):
            return embeddings

    shapes = jax.eval_shape(lambda: init(jax.random.key(0), batch, config, Stub(2048), np.ones(6)))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert 150e6 < count < 350e6


DEAD = {
    'tau': r'language/(telepathy_projector|tau_const|modulator|memory|summary|intent)'
    r'|language/(semantic_factors|hidden_norm)|vision/modulator/(w_1|theta_t)',
    'tau_const': r'language/(telepathy_projector|memory|summary|intent)'
    r'|language/(semantic_factors|hidden_norm)',
    'film': r'vision/modulator/',
    'memory': r'^$',
    'residual': r'^$',
}


@pytest.mark.parametrize('gate', DEAD)
def test_a_gate_kills_exactly_its_own_parameters(gradients, params, batch, gate):
    removed = gates(**{gate: 1.0 if gate == 'tau_const' else 0.0})
    grads = paths(gradients(params, batch, removed))
    assert all(np.isfinite(x).all() for x in grads.values())
    dead = {name for name, x in grads.items() if not np.any(x)}
    assert dead == {name for name in grads if re.search(DEAD[gate], name)}


def test_memory_gate_leaves_the_memory_rows_without_gradient(gradients, params, batch):
    def rows(value):
        return gradients(params, batch, gates(memory=value))['language']['memory']['w_lambda'][:W]

    assert not np.any(rows(0.0)) and np.any(rows(1.0))


def test_tau_gate_equals_a_tau_of_zero(run, params, batch):
    zero = replaced(params, **{'telepathy_projector/w_2|tau_const': np.zeros_like})
    off, removed = run(params, batch, gates(tau=0.0))[1], run(zero, batch, gates())[1]
    assert np.any(off.telepathy.tau) and not np.any(removed.telepathy.tau)
    assert same(
        (off.actions, off.c_act, off.residual), (removed.actions, removed.c_act, removed.residual)
    )
    assert not close(off.actions.traj, run(params, batch, gates())[1].actions.traj, 1e-3)


def test_film_gate_equals_a_closed_valve(run, params, batch):
    closed = replaced(params, theta_mod=lambda x: np.full_like(x, -np.inf))
    off = run(params, batch, gates(film=0.0))
    assert same(off, run(closed, batch, gates()))
    assert not close(off[1].actions.traj, run(params, batch, gates())[1].actions.traj, 1e-3)


def test_memory_gate_equals_a_reset_at_every_window(run, params, batch):
    off = run(params, batch, gates(memory=0.0))[1]
    reset = run(params, batch.replace(reset=np.ones_like(batch.reset)), gates())[1]
    assert same(off, reset) and np.all(off.fresh) and not np.any(off.m_prev)


def test_residual_gate_equals_no_base(run, params, batch):
    output = run(params, batch.replace(base=np.full_like(batch.base, np.nan)), gates(residual=0.0))[
        1
    ]
    assert same(output.actions, jax.tree.map(lambda x: ACTION_STD * x, output.residual))


def test_constant_tau_equals_a_projector_of_zero(run, params, batch):
    zero = replaced(params, **{'telepathy_projector/w_2': np.zeros_like})
    assert same(run(params, batch, gates(tau_const=1.0)), run(zero, batch, gates()))


def test_rows_under_vmap_equal_the_rows_alone(run, params, batch):
    rows = [gates(), gates(tau=0.0, memory=0.0)]
    together = quick.jit(jax.vmap(sequence, in_axes=(None, None, 0)))(
        params, batch, jax.tree.map(lambda *x: jnp.stack(x), *rows)
    )
    for j, row in enumerate(rows):
        pairs = zip(
            jax.tree.leaves(together), jax.tree.leaves(run(params, batch, row)), strict=True
        )
        assert all(close(x[j], y) for x, y in pairs)


def test_no_window_sees_a_later_one_and_memory_carries_earlier_ones(run, params, batch):
    noise = (
        np.random.default_rng(5).standard_normal(batch.observation.state.shape).astype(np.float32)
    )
    before = run(params, batch, gates())[1]
    for j in range(G):
        state = batch.observation.state + noise * (np.arange(G)[None, :, None] == j)
        after = run(
            params, batch.replace(observation=batch.observation.replace(state=state)), gates()
        )[1]
        moved = np.abs(after.actions.traj - before.actions.traj).max(axis=(0, 2, 3))
        assert (moved[:j] == 0).all() and (moved[j:] > 0).all()


def test_reset_cuts_one_row_off_from_its_past(run, params, batch):
    reset = batch.reset.copy()
    reset[1, 2] = True
    output = run(params, batch.replace(reset=reset), gates())[1]
    plain = run(params, batch, gates())[1]
    assert np.argwhere(output.fresh).tolist() == [[0, 0], [1, 0], [1, 2], [2, 0]]
    assert not np.any(output.m_prev[1, 2]) and np.array_equal(
        output.m_prev[:, 1], output.telepathy.memory[:, 0]
    )
    assert same(output.actions.traj[::2], plain.actions.traj[::2])
    assert not np.array_equal(output.actions.traj[1, 2], plain.actions.traj[1, 2])


def test_a_carried_sequence_equals_the_whole(run, params, batch):
    whole_carry, whole = run(params, batch, gates())
    carry, halves = initial_carry(CONFIG, B), []
    reset = batch.reset | (np.arange(G) == 0)
    for half in (slice(0, 2), slice(2, 4)):
        carry, output = run(
            params,
            jax.tree.map(lambda x, h=half: x[:, h], batch.replace(reset=reset)),
            gates(),
            carry,
        )
        halves.append(output)
    joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), *halves)
    for x, y in zip(
        jax.tree.leaves((whole_carry, whole)), jax.tree.leaves((carry, joined)), strict=True
    ):
        # two programs of other shapes: bitwise alike with jax 0.10, with 0.12 to rounding of the
        # largest summand
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * max(1.0, float(np.abs(y).max())))


def test_padding_and_absent_cameras_change_nothing(run, params, batch):
    o, rng = batch.observation, np.random.default_rng(6)
    text = np.where(o.text_mask, o.text, rng.integers(0, 16, o.text.shape))
    images = np.where(
        o.image_mask[..., None, None, None], o.images, rng.integers(0, 256, o.images.shape)
    ).astype(np.uint8)
    depth = np.where(o.image_mask[..., None, None, None], o.depth, 9.0).astype(np.float32)
    changed = batch.replace(observation=o.replace(text=text, images=images, depth=depth))
    extra = [(0, 0), (0, 0), (0, 4)]
    padded = batch.replace(
        observation=o.replace(text=np.pad(o.text, extra), text_mask=np.pad(o.text_mask, extra))
    )
    reference = jax.tree.leaves(run(params, batch, gates()))
    for other in (changed, padded):
        pairs = zip(jax.tree.leaves(run(params, other, gates())), reference, strict=True)
        assert all(close(x, y) for x, y in pairs)


def test_batch_order_permutes_the_output(run, params, batch):
    order = np.array([2, 0, 1])
    straight, shuffled = (
        run(params, batch, gates()),
        run(params, jax.tree.map(lambda x: x[order], batch), gates()),
    )
    pairs = zip(jax.tree.leaves(straight), jax.tree.leaves(shuffled), strict=True)
    assert all(close(x[order], y) for x, y in pairs)


def test_pass_1_never_sees_tau(run, params, batch):
    """Only pass 2 has tau: pass 1 does not move with the parameters that tau goes through first."""
    moved = replaced(
        params,
        **{
            'vision/modulator/(w_1|theta_t)|language/modulator|residual_head': lambda x: (
                x + np.float32(0.5)
            )
        },
    )
    one, other = (run(p, batch, gates())[1] for p in (params, moved))
    for name in ('telepathy', 'm_prev', 'c_act0', 'text_pool', 'vision_pool'):
        assert same(getattr(one, name), getattr(other, name))
    assert not close(one.c_act, other.c_act, 1e-3) and not close(
        one.actions.traj, other.actions.traj, 1e-3
    )


@pytest.fixture(scope='module')
def one_window(batch):
    """Runs a variant of the config on single windows: `(params, carry, key, config changes) ->
    output`.
    """
    single = jax.tree.map(lambda x: x[:, :1], batch)

    @functools.cache
    def compiled(changes):
        config = dataclasses.replace(CONFIG, **dict(changes))
        return quick.jit(lambda p, c, k: sequence(p, single, Ablation(), c, k, config)[1])

    def run(params, carry=None, key=None, **changes):
        carry = initial_carry(CONFIG, B) if carry is None else carry
        return compiled(tuple(changes.items()))(params, carry, key)

    return run


def test_tau_reaches_condition_and_telepathic_residual_apart(run, params, batch):
    """With r_high and vision tokens kept from it; then with the condition kept from it too."""
    still = replaced(params, theta_lang=lambda x: np.full_like(x, -np.inf))
    moved = {'tau_const': lambda x: x + np.float32(1)}
    one, other = (run(p, batch, gates(film=0.0))[1] for p in (still, replaced(still, **moved)))
    assert same(one.c_act0, other.c_act0) and not close(one.c_act, other.c_act, 1e-3)
    blind = replaced(still, **{'condition_projector/mlp/(w_2|b_2)': np.zeros_like})
    one, other = (run(p, batch, gates(film=0.0))[1] for p in (blind, replaced(blind, **moved)))
    assert same(one.c_act, other.c_act)
    for name in ('vec', 'chk', 'traj'):
        assert not close(getattr(one.residual, name), getattr(other.residual, name), 1e-3), name


def test_tau_reaches_the_second_pass_by_film_alone(run, params, batch):
    """With every other way of tau closed: it moves the actions through the vision tokens."""
    ways = r'condition_projector/mlp/(w_2|b_2)|residual_head/mlp/(w_2|b_2)'
    only = replaced(params, theta_lang=lambda x: np.full_like(x, -np.inf), **{ways: np.zeros_like})
    moved = replaced(only, tau_const=lambda x: x + np.float32(1))
    one, other = (run(p, batch, gates())[1].actions for p in (only, moved))
    assert not close(one.traj, other.traj, 1e-3)
    assert same(*(run(p, batch, gates(film=0.0))[1].actions for p in (only, moved)))


def test_recurrent_feedback_reads_the_previous_tau(one_window, params):
    rng = np.random.default_rng(7)
    memory, tau = (
        rng.standard_normal((B, width)).astype(np.float32) for width in (W, CONFIG.d_tau)
    )
    one, other = (
        one_window(params, Carry(memory, t), feedback='recurrent') for t in (tau, 0 * tau)
    )
    assert not close(one.vision_pool, other.vision_pool, 1e-3)
    two_pass = one_window(params, Carry(memory, tau))
    assert close(two_pass.vision_pool, other.vision_pool) and close(
        two_pass.telepathy.tau, other.telepathy.tau
    )
    assert not close(two_pass.c_act, other.c_act, 1e-3)


def test_fusion_without_base_and_to_the_letter(one_window, params, batch):
    pi05, none, internal = (
        one_window(params),
        one_window(params, fusion='none'),
        one_window(params, fusion='internal'),
    )
    assert close(none.actions.traj, ACTION_STD * none.residual.traj)
    assert close(pi05.actions.traj, batch.base[:, :1] + ACTION_STD * none.residual.traj)
    assert close(internal.actions.traj, ACTION_STD * internal.residual.traj)
    # with g silenced, the branches of 'internal' never saw tau
    silent = replaced(params, **{'residual_head/mlp/w_2': np.zeros_like})
    louder = replaced(silent, **{'tau_const': lambda x: x + np.float32(1)})
    assert same(*(one_window(p, fusion='internal').residual for p in (silent, louder)))
    assert not close(*(one_window(p).residual.traj for p in (silent, louder)), 1e-3)


def test_refinement_noise_belongs_to_the_window(one_window, params):
    key = jax.random.key(3)
    runs = [one_window(params, key=k, noise_scale=1.0) for k in (key, key, jax.random.key(4))]
    assert same(runs[0], runs[1]) and not close(runs[0].actions.traj, runs[2].actions.traj, 1e-3)
    assert same(runs[0].actions.vec, runs[2].actions.vec)
    rows = jax.random.key_data(
        window_keys(key, np.array([[1, 1], [2, 1]]), np.array([[5, 6], [5, 5]]))
    )
    assert (
        np.array_equal(rows[0, 0], rows[1, 1])
        and len(np.unique(np.reshape(rows, (4, -1)), axis=0)) == 3
    )
    with pytest.raises(ValueError, match='needs a key for the noise of its windows, got None'):
        one_window(params, noise_scale=1.0)


def test_half_precision_products_keep_float32_outputs(one_window, params):
    half, full = one_window(params, dtype='bfloat16'), one_window(params)
    assert all(x.dtype in (np.float32, np.bool_) for x in jax.tree.leaves(half))
    error = (
        np.abs(half.residual.traj - full.residual.traj).mean() / np.abs(full.residual.traj).mean()
    )
    assert 0 < error < 0.1


def test_plain_patch_embed_and_one_hot_text_need_no_backbone_input_layers(batch):
    config = dataclasses.replace(CONFIG, vision_encoder='patch_embed', text='one_hot')
    observation = embed_observation(BACKBONE, batch.observation, config)
    text = observation.text_embeddings
    assert observation.features is None and text.shape == (B, G, L, W)
    tokens = batch.observation.text
    equal = tokens.reshape(-1, 1) == tokens.reshape(1, -1)
    distance = np.abs(text.reshape(-1, 1, W) - text.reshape(1, -1, W)).max(-1)
    assert (distance[equal] == 0).all() and (distance[~equal] > 0.1).all()
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), batch, config))
    assert 'patch_embed' in shapes['vision']


def test_text_embeddings_must_be_there(batch, untrained):
    bare = BACKBONE, batch, None, Ablation(), ACTION_STD
    with pytest.raises(ValueError, match='got None; make them with embed_observation'):
        Sigma(CONFIG).apply({'params': untrained}, *bare, method='sequence')


def test_base_must_have_the_horizon(batch):
    assert CONFIG.horizon == T
    with pytest.raises(ValueError, match=r'base must be \[b 4 3\], got \[3, 2, 3\]'):
        jax.eval_shape(lambda: init(jax.random.key(0), batch.replace(base=batch.base[:, :, :2])))
