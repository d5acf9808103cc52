"""Action trajectory workspace against numpy: heads, fusion, controller (paper 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.sigma import action
from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.types import Actions
from tests import numpy_layers as ref
from tests import quick

RNG = np.random.default_rng(0)
B, N, S, D, E, Q, Z, T, C, A = 2, 2, 5, 6, 4, 3, 8, 6, 3, 2


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def config(**changes):
    return SigmaConfig(
        d_model=D, state_dim=3, action_dim=A, horizon=T, chunk=C, heads=2, action_width=Z, **changes
    )


def test_condition_projector():
    module, pooled, tau = (
        action.ActionConditionProjector(Z, E, 'float32'),
        normal(B, D),
        normal(B, E),
    )
    p = ref.random_params(module, pooled, tau)
    x = np.concatenate([ref.layer_norm(pooled, p['norm']), tau], -1)
    assert ref.close(ref.call(module, p, pooled, tau), ref.mlp(x, p['mlp']))


def test_query_generator():
    module, state_tokens, c_act = (
        action.ActionQueryGenerator(Q, Z, 2, 1, 'float32'),
        normal(B, N, D),
        normal(B, E),
    )
    p = ref.random_params(module, state_tokens, c_act)
    seed, s = np.stack([p['seed']] * B), state_tokens @ p['w_s']['kernel']
    q_1 = ref.attention(seed, s, p['attention'], 2) + ref.dense(c_act, p['condition_bias'])[:, None]
    q = ref.layer_norm(ref.transformer_block(q_1, p['refinement_0'], 2), p['norm'])
    assert ref.close(ref.call(module, p, state_tokens, c_act), q, 1e-4)


def test_three_heads():
    query, pooled, tau = normal(B, Q, Z), normal(B, D), normal(B, E)
    head = action.ActionTokenHead(5, A, 'float32')
    p = ref.random_params(head, query)
    tokens = ref.gelu(ref.dense(query, p['tokens'])).reshape(B, -1)
    assert ref.close(ref.call(head, p, query), tokens @ p['detokenizer']['kernel'])

    head = action.ActionChunkHead(Z, C, A, 'float32')
    p = ref.random_params(head, query)
    assert ref.close(ref.call(head, p, query), ref.mlp(query.mean(1), p['mlp']).reshape(B, C, A))

    head = action.TelepathyResidualHead(Z, T, C, A, 'float32')
    p = ref.random_params(head, pooled, tau)
    x = np.concatenate([ref.layer_norm(pooled, p['norm']), tau], -1)
    y = ref.mlp(x, p['mlp']).reshape(B, 1 + C + T, A)
    g = ref.call(head, p, pooled, tau)
    assert (
        ref.close(g.vec, y[:, 0])
        and ref.close(g.chk, y[:, 1 : 1 + C])
        and ref.close(g.traj, y[:, 1 + C :])
    )


def branches(base):
    return Actions.from_trajectory(base, C)


def test_residual_is_scaled_by_sigma_and_added_to_the_base():
    base, action_std = normal(B, T, A), np.array([2.0, 30.0], np.float32)
    residual = Actions(vec=normal(B, A), chk=normal(B, C, A), traj=normal(B, T, A))
    actions = action.apply_residual(residual, branches(base), action_std)
    assert ref.close(actions.vec, base[:, 0] + action_std * residual.vec)
    assert ref.close(actions.chk, base[:, :C] + action_std * residual.chk)
    assert ref.close(actions.traj, base + action_std * residual.traj)
    alone = action.apply_residual(residual, branches(np.full_like(base, np.nan)), action_std, 0.0)
    assert np.array_equal(alone.traj, action_std * residual.traj)


@pytest.mark.parametrize('zero', [0.0, -0.0])
def test_a_zero_residual_changes_no_bit_and_still_has_a_gradient(zero):
    base = np.array([1.5, -0.0, 0.0, 1e-40, np.inf], np.float32)
    residual = np.full(5, zero, np.float32)
    total = quick.jit(action.add_residual)(base, residual)
    assert np.array_equal(np.asarray(total).view(np.int32), base.view(np.int32))
    gradient = jax.grad(lambda r: jnp.sum(action.add_residual(base[:4], r) * jnp.arange(4.0)))(
        residual[:4]
    )
    assert np.array_equal(gradient, np.arange(4.0))


def test_fusion_is_the_mean_of_the_branches_that_cover_a_step():
    actions = Actions(vec=normal(B, A), chk=normal(B, C, A), traj=normal(B, T, A))
    u = np.asarray(action.fuse_actions(actions))
    assert ref.close(u[:, 0], (actions.vec + actions.chk[:, 0] + actions.traj[:, 0]) / 3)
    assert ref.close(u[:, 1:C], (actions.chk[:, 1:] + actions.traj[:, 1:C]) / 2)
    assert np.array_equal(u[:, C:], actions.traj[:, C:])
    base = normal(B, T, A)
    assert np.array_equal(action.fuse_actions(branches(base)), base)


def test_low_level_controller_clamps_joints_and_rates():
    limits = config(joint_low=(-1.0, -2.0), joint_high=(1.0, 2.0), joint_rate=(0.5, 0.25))
    command, previous = 3 * normal(B, T, A), 0.1 * normal(B, A)
    last, expected = previous, []
    for t in range(T):
        target = np.clip(command[:, t], [-1, -2], [1, 2])
        last = last + np.clip(target - last, [-0.5, -0.25], [0.5, 0.25])
        expected.append(last)
    motor_commands = action.low_level_controller(command, limits, previous)
    assert ref.close(motor_commands, np.stack(expected, 1))
    unread = np.where([True, False], np.nan, previous)
    half = np.asarray(action.low_level_controller(command, limits, unread))
    assert ref.close(half[:, 0, 0], np.clip(command[:, 0, 0], -1, 1))
    assert np.array_equal(half[:, :, 1], motor_commands[:, :, 1])
    free = action.low_level_controller(command, limits)
    assert ref.close(free[:, 0], np.clip(command[:, 0], [-1, -2], [1, 2]))


def test_controller_without_limits_changes_nothing():
    command = normal(B, T, A)
    assert np.array_equal(action.low_level_controller(command, config(), normal(B, A)), command)


def test_config_names_what_is_wrong():
    for changes, text in (
        (dict(fusion='sum'), "sigma.fusion: expected one of pi05, none, internal, got 'sum'"),
        (dict(num_state=0), 'sigma.num_state: expected a whole number of at least 1, got 0'),
        (dict(action_heads=3), 'sigma.action_heads: expected a divisor of sigma.action_width'),
        (dict(joint_low=(0.0,)), 'sigma.joint_low: expected one number per joint'),
    ):
        with pytest.raises(UserError, match=text):
            config(**changes)
    with pytest.raises(UserError, match=r'sigma\.chunk: expected at most sigma\.horizon'):
        SigmaConfig(d_model=D, state_dim=3, action_dim=A, horizon=4, chunk=8, heads=2)
    assert config().chunk == C
