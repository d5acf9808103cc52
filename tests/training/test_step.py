"""The step on the real pi0.5: what moves, what must not, gates, dropout, rows side by side."""

import re

import chex
import jax
import numpy as np
import optax
import pytest

from configs import ablations as config
from sigma_jax import trees
from sigma_jax.ablations import stacked
from sigma_jax.sigma import curriculum, losses
from sigma_jax.training.grid import Grid
from sigma_jax.training.optimizer import OptimizerConfig, make_optimizer
from sigma_jax.training.step import init_state, make_step
from tests import quick
from tests import small_sigma as small
from tests.moments import moments

ROWS = dict(config.get_config().to_dict()['rows'])
OPTIMIZER = make_optimizer(
    OptimizerConfig(sigma_rate=1e-2, lora_rate=1e-2, warmup_steps=1, total_steps=10)
)


def members_of(rows):
    """Each row once."""
    return stacked.cross(Grid.from_dict({'rows': rows, 'seeds': [0]}).rows, [0])


@pytest.fixture(scope='module')
def frozen():
    return jax.tree.map(jax.numpy.asarray, small.frozen())


@pytest.fixture(scope='module')
def batch():
    return small.make_batch()


@pytest.fixture(scope='module')
def step():
    """The jitted step; tracing it twice fails."""
    one = make_step(small.sigma_objective(), OPTIMIZER)
    return quick.jit(chex.assert_max_traces(one, n=1))


@pytest.fixture(scope='module')
def start():
    return init_state(0, small.perturbed(), OPTIMIZER)


@pytest.fixture(scope='module')
def five_steps(step, frozen, batch):
    """States after 0 to 5 steps from the untrained Sigma."""
    states = [init_state(0, small.untrained(), OPTIMIZER)]
    for _ in range(5):
        states.append(step(states[-1], frozen, batch, small.gates())[0])
    return jax.device_get(states)


def test_every_trainable_leaf_has_a_gradient_within_five_steps(five_steps):
    leaves = trees.flatten(five_steps[-1].trainable)
    gradients = moments(five_steps[-1])
    assert set(gradients) == set(leaves) and len(leaves) > 100
    assert [
        name for name, x in gradients.items() if not np.any(x) or not np.isfinite(x).all()
    ] == []
    before = trees.flatten(five_steps[0].trainable)
    assert [name for name, x in leaves.items() if np.array_equal(x, before[name])] == []


def test_nothing_of_the_base_changes_or_is_remembered(five_steps, frozen):
    assert trees.digest(frozen.params) == trees.digest(small.frozen().params)
    state = five_steps[-1]
    trainable = trees.flatten(state.trainable)
    assert all(path.startswith(('sigma/', 'lora/')) for path in trainable)
    for which in ('mu', 'nu'):
        assert {k: x.shape for k, x in moments(state, which).items()} == {
            k: x.shape for k, x in trainable.items()
        }
    others = [
        path
        for path, x in trees.flatten(state.opt_state).items()
        if not re.search('/(mu|nu)$', path)
    ]
    assert {path.rsplit('/', 1)[-1] for path in others} == {'count'}
    assert state.step == 5 and np.array_equal(state.rng, five_steps[0].rng)


def test_lora_gate_kills_the_gradient_of_its_factors(step, start, frozen, batch):
    after, metrics = step(start, frozen, batch, small.gates(lora=0.0))
    zero = start.replace(
        trainable=start.trainable | {'lora': jax.tree.map(np.zeros_like, start.trainable['lora'])}
    )
    expected, same = step(zero, frozen, batch, small.gates())
    dead = {name for name, x in moments(after).items() if not np.any(x)}
    assert dead == {name for name in moments(after) if name.startswith('lora/')}
    assert metrics['loss'] == same['loss']
    chex.assert_trees_all_equal(after.trainable['sigma'], expected.trainable['sigma'])


def test_dropout_is_keyed_by_seed_and_step(step, start, frozen, batch):
    def loss(seed=0, number=0, **gates):
        state = start.replace(rng=jax.random.key_data(jax.random.key(seed)), step=np.int32(number))
        return float(step(state, frozen, batch, small.gates(ramp_speed=np.inf, **gates))[1]['loss'])

    assert loss() == loss() and len({loss(), loss(seed=1), loss(number=1)}) == 3
    assert len({loss(lora=0.0), loss(seed=1, lora=0.0), loss(number=1, lora=0.0)}) == 1


def test_without_dropout_the_loss_is_that_of_the_deterministic_pass(step, start, frozen, batch):
    objective, off = small.sigma_objective(), small.gates(lora=0.0)
    _, output = small.forward()(start.trainable, frozen, batch, off)
    terms, _ = quick.jit(lambda *x: losses.sigma_terms(x[0], x[1], objective.loss, *x[2:]))(
        output, batch, frozen.scaling.action_std, off
    )
    weights = curriculum.evaluate(curriculum.make_schedules(objective.curriculum), 0)
    want = losses.combine(terms, weights, batch.mask, objective.loss.alignment_scale)
    np.testing.assert_allclose(step(start, frozen, batch, off)[1]['loss'], want, rtol=1e-5)


def test_padding_windows_and_batch_order_change_nothing(step, start, frozen, batch):
    """With LoRA off: dropout draws its mask by place in the batch."""
    off = small.gates(lora=0.0)
    after, metrics = step(start, frozen, batch, off)
    rng = np.random.default_rng(3)
    spoilt = jax.tree.map(np.copy, batch)
    for x in (spoilt.actions, spoilt.base, spoilt.observation.state, spoilt.observation.depth):
        x[1, 3] = 100 * rng.standard_normal(x[1, 3].shape)
    spoilt.text_id[1, 3] = 7
    for other in (spoilt, jax.tree.map(lambda x: x[::-1], batch)):
        changed, same = step(start, frozen, other, off)
        chex.assert_trees_all_close(same, metrics, rtol=2e-5, atol=1e-6)
        for name, x in moments(changed).items():
            reference = moments(after)[name]
            np.testing.assert_allclose(
                x, reference, atol=1e-5 * np.abs(reference).max() + 1e-9, err_msg=name
            )


@pytest.fixture(scope='module')
def together(start, frozen, batch):
    """(members, their states, metrics) after the first step of all rows of configs/ablations.py, in
    one program.
    """
    objective, traces = small.sigma_objective(), []
    one = make_step(objective, OPTIMIZER)

    def counted(*inputs):
        traces.append(inputs)
        return one(*inputs)

    def share(frozen, batch):
        return batch.replace(observation=objective.encode_frozen(frozen, batch.observation))

    members = members_of(ROWS)
    program = quick.jit(stacked.vmapped_step(counted, 1, share))
    gates = stacked.stack_gates(members)
    rows, metrics = program(stacked.start([start] * len(members)), frozen, batch, gates)
    again = program(rows, frozen, batch, jax.tree.map(lambda x: x[::-1], gates))[0]
    assert again.state.step.tolist() == [2] * 12 and len(traces) == 1, 'all gates share one trace'
    return members, jax.device_get(rows.state), jax.device_get(metrics)


def test_rows_side_by_side_equal_the_rows_alone(together, step, start, frozen, batch):
    """First gradients within 1e-5 of each leaf's largest; test_rows_alone.py follows them for 20
    steps.
    """
    members, states, metrics = together
    for n, member in enumerate(members):
        gates = jax.tree.map(np.float32, member.gates)
        alone, expected = step(start, frozen, batch, gates)
        chex.assert_trees_all_close(
            {k: x[n] for k, x in metrics.items()}, expected, rtol=1e-6, atol=1e-7
        )
        for name, x in moments(states).items():
            reference = moments(alone)[name]
            np.testing.assert_allclose(
                x[n], reference, atol=1e-5 * np.abs(reference).max() + 1e-9, err_msg=name
            )


TAU = (
    r'vision/modulator/(w_1|theta_t)'
    r'|language/(modulator|tau_const|telepathy_projector|summary_text)'
)
# row: parameters without a gradient; c_text is read by tau alone, memory, intent and factors by the
# alignment terms too
DEAD = {
    'no_tau': TAU,
    'tau_const': r'language/(telepathy_projector|summary_text)/',
    'no_film': r'vision/modulator/',
    'no_lora': r'lora/',
    'heads_only': rf'{TAU}|vision/modulator/',
}


@pytest.mark.parametrize('row', ROWS)
def test_a_row_kills_exactly_its_own_gradients(together, row):
    members, states, _ = together
    n = [member.row for member in members].index(row)
    gradients = {name: x[n] for name, x in moments(states).items()}
    dead = {name for name, x in gradients.items() if not np.any(x)}
    assert dead == {name for name in gradients if re.search(DEAD.get(row, '^$'), name)}


def test_in_one_program_a_shut_gate_is_the_removed_path_bitwise(start, frozen, batch):
    """Rows with a gate shut beside rows whose parameters or data leave the part out: the same loss
    and first step.
    """
    objective = small.sigma_objective()
    members = members_of({k: ROWS[k] for k in ('sigma', 'no_lora', 'no_film', 'no_tau')})
    removed = [
        {},
        {'lora/': np.zeros_like},
        {'vision/modulator/theta_mod': lambda x: np.full_like(x, -np.inf)},
        {'language/(telepathy_projector/w_2|tau_const)': np.zeros_like},
    ]

    def without(changes):
        def one(path, x):
            return next((f(x) for pattern, f in changes.items() if re.search(pattern, path)), x)

        return start.replace(trainable=trees.map_with_path(one, start.trainable))

    open_gates = members_of({member.row: {} for member in members})
    states = stacked.start([start] * 4 + [without(changes) for changes in removed])
    gates = stacked.stack_gates([*members, *open_gates])

    def errors(trainable, gates):
        return objective.forward(trainable, frozen, batch, gates)[1].actions

    actions = quick.jit(jax.vmap(errors))(states.state.trainable, gates)
    for x in jax.tree.leaves(actions):
        np.testing.assert_array_equal(x[:4], x[4:])
        assert len({part.tobytes() for part in np.asarray(x[:4])}) == 4, (
            'every gate changes the actions'
        )


def test_running_average():
    """On a quadratic: average <- decay * average + (1 - decay) * new, of trainable leaves only."""

    def objective(trainable, frozen, batch, ablation, key, step):
        return (trainable['sigma']['w'] ** 2).sum(), {}

    state = init_state(0, {'sigma': {'w': np.ones(3, np.float32)}}, optax.sgd(0.1), ema=True)
    one = jax.jit(make_step(objective, optax.sgd(0.1), 0.75))
    expected = weights = np.ones(3)
    for _ in range(3):
        state, metrics = one(state, None, None, None)
        weights = 0.8 * weights
        expected = 0.75 * expected + 0.25 * weights
    np.testing.assert_allclose(state.trainable['sigma']['w'], weights, rtol=1e-6)
    np.testing.assert_allclose(state.ema['sigma']['w'], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], 2 * np.linalg.norm(weights / 0.8), rtol=1e-6)
    assert init_state(0, state.trainable, optax.sgd(0.1)).ema is None
