"""Language intent workspace against numpy (paper 3.2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.sigma import language
from sigma_jax.sigma.config import SigmaConfig
from tests import numpy_layers as ref
from tests import quick

RNG = np.random.default_rng(0)
B, S, D, E, K = 2, 5, 8, 4, 3
MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def summary(hidden, mask, p):
    rows = [ref.softmax(h[m] @ p['score']) @ h[m] for h, m in zip(hidden, mask, strict=True)]
    return ref.dense(np.stack(rows), p['value'])


def memory_step(m_prev, z_pool, p):
    u = ref.gelu(z_pool @ p['w_u'] + p['b_u'])
    gate = ref.sigmoid(np.concatenate([m_prev, z_pool], -1) @ p['w_lambda'] + p['b_lambda'])
    return gate * m_prev + (1 - gate) * u


@pytest.fixture(scope='module')
def workspace():
    config = SigmaConfig(
        d_model=D, state_dim=3, action_dim=3, d_tau=E, num_factors=K, heads=2, action_width=8
    )
    return language.LanguageIntentWorkspace(config)


def test_memory_recursion_over_three_steps():
    module, m = language.SemanticWorkspaceMemory('float32'), np.zeros((B, D), np.float32)
    p = ref.random_params(module, m, m)
    expected = m
    for _ in range(3):
        z_pool = normal(B, D)
        m, expected = ref.call(module, p, m, z_pool), memory_step(expected, z_pool, p)
    assert ref.close(m, expected)


def test_modulator_gates_twice_and_is_the_identity_without_telepathy():
    module, hidden, tau = language.LanguageModulator(0.0, 'float32'), normal(B, S, D), normal(B, E)
    p = ref.random_params(module, hidden, tau)
    bias = np.exp(p['theta_lang']) * ref.sigmoid(tau @ p['w_g']) * (tau @ p['w_b'])
    assert ref.close(ref.call(module, p, hidden, tau), hidden + bias[:, None])
    assert np.array_equal(ref.call(module, p, hidden, 0 * tau), hidden)


def infer(workspace, hidden, mask, m_prev, tau_const=0.0):
    """All that pass 1 infers of one window."""
    summary = workspace.summarise(hidden, mask)
    return workspace.conclude(summary, workspace.memory(m_prev, summary.z_pool), tau_const)


def test_infer_follows_the_paper(workspace):
    hidden, m_prev = normal(B, S, D), normal(B, D)
    p = ref.random_params(workspace, hidden, MASK, m_prev, method=infer)
    got = ref.call(workspace, p, hidden, MASK, m_prev, method=infer)
    h = ref.layer_norm(hidden, p['hidden_norm'])
    factors = p['semantic_factors']
    z_sem = ref.attention(np.stack([factors['query']] * B), h, factors['attention'], 2, MASK)
    z_pool = z_sem.mean(1)
    memory = memory_step(m_prev, z_pool, p['memory'])
    c_env, c_beh, c_text = (
        summary(h, MASK, p[f'summary_{name}']) for name in ('env', 'beh', 'text')
    )
    z_intent = ref.mlp(np.concatenate([memory, c_env, c_beh], -1), p['intent']['mlp'])
    x = np.concatenate(
        [ref.layer_norm(v) for v in (memory, z_intent, c_env, c_beh, z_pool, c_text)], -1
    )
    q = p['telepathy_projector']
    tau = ref.gelu(x @ q['w_1'] + q['b_1']) @ q['w_2'] + p['tau_const']
    expected = dict(
        z_sem=z_sem,
        z_pool=z_pool,
        memory=memory,
        c_env=c_env,
        c_beh=c_beh,
        c_text=c_text,
        z_intent=z_intent,
        tau=tau,
    )
    for name, value in expected.items():
        assert ref.close(getattr(got, name), value, 1e-4), name


def test_masked_tokens_weigh_nothing(workspace):
    hidden, m_prev = normal(B, S, D), normal(B, D)
    p = ref.random_params(workspace, hidden, MASK, m_prev, method=infer)
    noisy = hidden + 5 * normal(B, S, D) * ~MASK[..., None]
    one, other = (ref.call(workspace, p, x, MASK, m_prev, method=infer) for x in (hidden, noisy))
    assert all(
        ref.close(x, y, 1e-6)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_constant_tau_is_one_vector_for_every_input(workspace):
    hidden, m_prev = normal(B, S, D), normal(B, D)
    p = ref.random_params(workspace, hidden, MASK, m_prev, method=infer)
    got = ref.call(workspace, p, hidden, MASK, m_prev, 1.0, method=infer)
    assert np.array_equal(got.tau, np.stack([p['tau_const']] * B))


def test_untrained_tau_has_the_rms_of_table_1_whatever_the_scale_of_the_hidden_sequence():
    module = language.LanguageIntentWorkspace(SigmaConfig(d_model=128, state_dim=3, action_dim=3))
    hidden, mask = normal(8, 6, 128), np.ones((8, 6), bool)

    @quick.jit
    def rms(key, scale):
        inputs = (scale * hidden, mask, np.zeros((8, 128), np.float32))
        tau = module.init_with_output(key, *inputs, method=infer)[0].tau
        return jnp.sqrt(jnp.mean(tau**2))

    for scale in (1e-2, 1.0, 100.0):
        assert 0.045 < np.mean([rms(jax.random.key(seed), scale) for seed in range(4)]) < 0.055
