"""Rows side by side, around one matrix: which there are, chunks, rows that stop being numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import ablations as config
from sigma_jax.ablations import stacked
from sigma_jax.errors import UserError
from sigma_jax.training.grid import Grid
from sigma_jax.training.step import init_state, make_step

ROWS = dict(config.get_config().to_dict()['rows'])
SEEDS = (3, 5)


def members_of(rows, seeds):
    """The members of a grid that a config file describes."""
    grid = Grid.from_dict({'rows': rows, 'seeds': seeds})
    return stacked.cross(grid.rows, grid.seeds)


def test_the_grid_is_rows_times_seeds_and_names_every_gate():
    members = members_of(ROWS, range(5))
    assert (
        len(members) == 60
        and members[0] == ('sigma', 0, stacked.Ablation())
        and members[5].row == 'no_tau'
    )
    assert [m.seed for m in members[:6]] == [0, 1, 2, 3, 4, 0]
    changed = {gate for row in ROWS.values() for gate in row}
    assert changed == set(stacked.Ablation.__dataclass_fields__), 'a gate without a row'
    gates = stacked.stack_gates(members)
    assert gates.tau.dtype == jnp.float32 and gates.tau.tolist() == [
        float(m.gates.tau) for m in members
    ]
    assert np.isinf(gates.ramp_speed).sum() == 5


@pytest.mark.parametrize(
    ('rows', 'seeds', 'message'),
    [
        ({'a': {'taw': 0.0}}, (0,), r"expected gates out of .* in row 'a', got \['taw'\]"),
        ({'a/b': {}}, (0,), "expected a name of letters, digits and _, got 'a/b'"),
        ({'a': {}}, (1, 1), r'expected rows and different seeds, got 1 rows and seeds \[1, 1\]'),
        ({'a': {}}, (0, 'b'), "whole numbers as seeds, got 'b'"),
        ({'a': {}}, (0.5,), 'whole numbers as seeds, got 0.5'),
        ({}, (0,), 'expected rows and different seeds, got 0 rows'),
    ],
)
def test_grids_that_cannot_be_meant(rows, seeds, message):
    with pytest.raises(UserError, match=message):
        members_of(rows, seeds)


def test_chunks_divide_the_members():
    assert [stacked.at_once(n, 12) for n in (0, 1, 5, 11, 12, 99)] == [12, 1, 4, 6, 12, 12]


def objective(trainable, frozen, batch, ablation, key, step):
    """Distance to noise around the batch; no number from step 2 on where the gate `film` is shut,
    and its gradient none at step 1 where `hard` is.
    """
    w = trainable['sigma']['w']
    loss = jnp.mean((ablation.tau * w - batch - jax.random.normal(key, w.shape)) ** 2)
    loss = loss * jnp.where((step >= 2) & (ablation.film <= 0), jnp.nan, 1.0)
    steep = jnp.where((step == 1) & (ablation.hard <= 0), 0.0, 1.0)
    return loss + jnp.sum(jnp.sqrt(steep * w**2)) * 0, {'first': w[0]}


def train(rows, count, steps=5):
    """(members, their states, metrics of every step)."""
    optimizer, traces = optax.adam(0.1), []
    members = members_of(rows, SEEDS)
    start = {
        s: init_state(
            s, {'sigma': {'w': jax.random.normal(jax.random.key(s), (3,)) + 5}}, optimizer
        )
        for s in SEEDS
    }
    state, gates = stacked.start([start[m.seed] for m in members]), stacked.stack_gates(members)
    one = make_step(objective, optimizer)

    def counted(*inputs):
        traces.append(inputs)
        return one(*inputs)

    step = jax.jit(stacked.vmapped_step(counted, count), donate_argnums=0)
    seen = []
    for n in range(steps):
        state, metrics = step(state, {}, jnp.full(3, 0.1 * n), gates)
        seen.append(jax.device_get(metrics))
    assert len(traces) == 1, 'all rows and steps share one trace'
    return members, jax.device_get(state), seen


FINE = {'a': {}, 'b': {'tau': 0.5}, 'c': {'tau': 2.0}}


@pytest.mark.parametrize('count', [1, 2, 6])
def test_members_are_what_they_are_alone_however_many_at_once(count):
    members, state, seen = train(FINE, count)
    assert state.failed.tolist() == [stacked.ALIVE] * 6 and state.step == 5
    for n, member in enumerate(members):
        _, alone, metrics = train({member.row: FINE[member.row]}, 1)
        k = SEEDS.index(member.seed)
        chex.assert_trees_all_close(
            stacked.member_state(state, n), stacked.member_state(alone, k), rtol=1e-6
        )
        np.testing.assert_allclose(seen[-1]['loss'][n], metrics[-1]['loss'][k], rtol=1e-6)
    assert len({float(x) for x in seen[-1]['loss']}) == 6, 'rows and seeds differ'


@pytest.mark.parametrize('count', [1, 4, 8])
def test_a_row_that_is_no_number_stops_where_it_was_and_the_others_do_not_notice(count):
    broken = FINE | {'nan': {'film': 0.0}}
    members, state, _ = train(broken, count)
    assert state.failed.tolist() == [-1] * 6 + [2, 2] and state.step == 5
    for seed, n in zip(SEEDS, (6, 7), strict=True):
        kept = stacked.member_state(state, n)
        assert (
            kept.step == 2
            and all(np.isfinite(x).all() for x in jax.tree.leaves(kept))
            and members[n].seed == seed
        )
        before = stacked.member_state(train(broken, count, steps=2)[1], n)
        chex.assert_trees_all_equal(kept, before)
    same = train(FINE | {'nan': {}}, count)[1]
    for n in range(6):
        chex.assert_trees_all_equal(stacked.member_state(state, n), stacked.member_state(same, n))


def test_a_gradient_that_is_no_number_stops_a_row_whose_loss_is_one():
    _, state, seen = train(FINE | {'steep': {'hard': 0.0}}, 1)
    assert np.isfinite(seen[1]['loss']).all() and np.isnan(seen[1]['grad_norm'][6:]).all()
    assert (
        state.failed.tolist() == [-1] * 6 + [1, 1]
        and np.isfinite(state.state.trainable['sigma']['w']).all()
    )


def test_mean_and_spread_over_seeds():
    values = [1.0, 2.0, 4.5]
    np.testing.assert_allclose(
        stacked.mean_and_std(values), [np.mean(values), np.std(values, ddof=1)]
    )
    assert stacked.mean_and_std([3.0]) == (3.0, 0.0) and np.isnan(stacked.mean_and_std([])).all()
