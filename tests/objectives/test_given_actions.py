"""Flow matching that gives the first actions of a window clean: what the policy is shown, what
counts, and that nothing changes where it is off.
"""

import jax
import numpy as np
import pytest

from configs import defaults
from sigma_jax.backbones import pi05
from sigma_jax.errors import UserError
from sigma_jax.objectives.flow_matching import FlowMatching, RtcConfig
from sigma_jax.objectives.sigma import SigmaObjective
from sigma_jax.training.config import RunConfig
from sigma_jax.types import Ablation, ActionScaling
from tests import golden, quick
from tests import small_sigma as small
from tests.test_draws import equations

KEY = jax.random.key(5)
DELAY = np.array([3, 0, 6])


@pytest.fixture(scope='module')
def frozen():
    """Units in which raw actions are the policy's own."""
    scales = {'low': -1.0, 'span': 2.0, 'action_std': 1.0, 'relative': 0.0, 'state_low': 0.0}
    arrays = {name: np.full(8, x, np.float32) for name, x in scales.items()}
    scaling = ActionScaling(**arrays, state_span=np.ones(8, np.float32))
    return small.frozen().replace(params={}, scaling=scaling)


@pytest.fixture(scope='module')
def batch():
    """The golden inputs as three windows; the first ends after eight steps."""
    i = golden.inputs()
    mask = np.ones((3, 1, 10), bool)
    mask[0, 0, 8:] = False
    rows = jax.tree.map(lambda x: x[:1, :1].repeat(3, 0), small.make_batch())
    return rows.replace(
        observation=jax.tree.map(lambda x: x[:, None], golden.observation()),
        actions=i['actions'][:, None],
        action_mask=mask,
        mask=np.ones((3, 1), bool),
        time=i['time'][:, None],
        noise=i['noise'][:, None],
        delay=DELAY[:, None],
    )


@pytest.fixture(scope='module')
def loss(frozen, golden_params):
    """A batch's loss, and its gradient."""

    def value(params, batch):
        objective = FlowMatching(golden.config(), 6)
        return objective({'params': params}, frozen, batch, Ablation(), KEY, 0)[0]

    program = quick.jit(jax.value_and_grad(value))
    return lambda batch: program(golden_params, batch)


def test_the_loss_by_hand(batch, loss, golden_params):
    """Given steps are the actions themselves at time 0; the mean is over the others of it."""
    i = golden.inputs()
    given = np.arange(10) < DELAY[:, None]
    time = np.where(given, 0, i['time'][:, None])
    x_t = time[..., None] * i['noise'] + (1 - time[..., None]) * i['actions']
    assert np.array_equal(x_t[given], i['actions'][given])
    velocity = quick.jit(pi05.BoundPi05(golden.config(), golden_params).velocity)(
        golden.observation(), np.float32(x_t), np.float32(time)
    )
    error = np.mean((np.asarray(velocity) - (i['noise'] - i['actions'])) ** 2, axis=-1)
    counted = ~given & batch.action_mask[:, 0]
    assert counted.sum() == 5 + 10 + 4
    np.testing.assert_allclose(loss(batch)[0], error[counted].mean(), rtol=1e-5)
    assert abs(error.mean() / error[counted].mean() - 1) > 0.01


def test_the_noise_of_given_steps_reaches_nothing(batch, loss):
    """Neither the loss nor a gradient; that of the others does."""
    given = (np.arange(10) < DELAY[:, None])[:, None, :, None]
    whole = loss(batch)
    other = loss(batch.replace(noise=np.where(given, 9.0, batch.noise)))
    assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(other)))
    assert loss(batch.replace(noise=np.where(given, batch.noise, 9.0)))[0] != whole[0]


def test_given_actions_are_seen_by_the_others(batch, loss):
    actions = batch.actions.copy()
    actions[0, 0, :3] += 0.5
    assert abs(loss(batch.replace(actions=actions))[0] / loss(batch)[0] - 1) > 1e-4


def test_with_nothing_given_it_is_the_plain_loss(batch, loss, frozen, golden_params):
    plain = quick.jit(
        lambda params, batch: FlowMatching(golden.config())(
            {'params': params}, frozen, batch, Ablation(), KEY, 0
        )[0]
    )
    nothing = batch.replace(delay=0 * batch.delay)
    np.testing.assert_allclose(
        loss(nothing)[0], plain(golden_params, batch.replace(delay=None)), rtol=1e-5
    )


def test_delays_are_drawn_beside_times_and_noise():
    """Evenly from 0 to the largest, which comes too; time and noise are those without."""
    batch = jax.tree.map(lambda x: np.zeros((500, 4, *x.shape[2:]), x.dtype), small.make_batch())
    plain, more = (FlowMatching(golden.config(), d).sample_noise(KEY, batch) for d in (0, 4))
    assert plain.delay is None
    assert np.array_equal(plain.time, more.time) and np.array_equal(plain.noise, more.noise)
    counts = np.bincount(np.ravel(more.delay), minlength=5)
    assert more.delay.shape == (500, 4) and len(counts) == 5
    assert (np.abs(counts / 2000 - 0.2) < 0.05).all()
    other = FlowMatching(golden.config(), 4).sample_noise(jax.random.key(6), batch)
    assert not np.array_equal(more.delay, other.delay)


def test_the_step_draws_the_delays_of_its_key(batch, loss, frozen, golden_params):
    """As before a batch is divided: micro-batches of it, by their weights, are the whole batch."""
    objective = FlowMatching(golden.config(), 6)
    alone = batch.replace(time=None, noise=None, delay=None)
    whole = quick.jit(objective)({'params': golden_params}, frozen, alone, Ablation(), KEY, 0)[0]
    drawn = objective.sample_noise(KEY, alone)
    counted = (np.arange(10) >= drawn.delay[..., None]) & batch.action_mask
    assert drawn.delay.sum() > 0 and float(objective.weight(drawn)) == counted.sum()
    np.testing.assert_allclose(loss(drawn)[0], whole, rtol=1e-5)
    rows = [drawn.replace(mask=batch.mask & (np.arange(3) == n)[:, None]) for n in range(3)]
    parts, weights = ([float(of(row)) for row in rows] for of in (first(loss), objective.weight))
    assert weights == counted.sum((1, 2)).tolist()
    np.testing.assert_allclose(np.average(parts, weights=weights), whole, rtol=1e-5)


def first(loss):
    return lambda batch: loss(batch)[0]


def test_off_it_is_not_there(batch, frozen, golden_params):
    """No draw of a delay, and a time of each window, not of each step of it."""
    alone = batch.replace(time=None, noise=None, delay=None)

    def traced(max_delay):
        objective = FlowMatching(golden.config(), max_delay)
        arguments = ({'params': golden_params}, frozen, alone, Ablation(), KEY, 0)
        found = list(equations(jax.make_jaxpr(objective)(*arguments).jaxpr))
        waves = {e.outvars[0].aval.shape for e in found if e.primitive.name == 'sin'}
        names = {str(e.params.get('name', '')).strip('_') for e in found}
        return 'randint' in names, (3, 24) in waves, (3, 10, 24) in waves

    assert traced(0) == (False, True, False) and traced(4) == (True, False, True)


@pytest.mark.parametrize('wrong', [-1, 10, 11, 2.0, True, 'a', None])
def test_a_delay_that_makes_no_sense_is_told(wrong):
    message = 'config.rtc.max_delay: expected a whole number from 0 to 9, one less than'
    with pytest.raises(UserError, match=message):
        FlowMatching.build(golden.config(), None, None, None, RtcConfig(wrong))


def test_settings_of_a_run():
    """Off by default, kept with the run, and none of Sigma's."""
    config = defaults.get_config().to_dict()
    assert RunConfig.from_dict(config).rtc == RtcConfig(0) == RunConfig.from_dict({}).rtc
    made = RunConfig.from_dict(config | {'rtc': {'max_delay': 4}})
    assert made.rtc == RtcConfig(4) and RunConfig.from_dict(made.to_dict()) == made
    built = FlowMatching.build(golden.config(), None, None, None, made.rtc)
    assert built == FlowMatching(golden.config(), 4)
    with pytest.raises(UserError, match="rtc.max_delay: expected 0 for objective 'sigma', got 4"):
        SigmaObjective.build(small.PI05, small.SIGMA, made.loss, made.curriculum, made.rtc)
