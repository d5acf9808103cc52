"""Training checkpoints: whole or not there, of this config or refused, averages kept for
inference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sigma_jax import trees
from sigma_jax.errors import UserError
from sigma_jax.training.checkpoints import Checkpoints, compare, parameter_count
from sigma_jax.training.config import RunConfig
from sigma_jax.training.step import init_state, make_step

SETTINGS = {
    'seed': 0,
    'steps': 9,
    'sigma': {'d_tau': 4, 'joint_low': (1.0, 2.0)},
    'ema': None,
    'loader': {'num_workers': 0},
}
CONFIG = RunConfig.from_dict(SETTINGS)


def changed(**settings):
    return RunConfig.from_dict(SETTINGS | settings)


def make_state(steps=0, ema=True):
    """A state after some steps down a quadratic, with Adam's moments and a running average."""
    optimizer = optax.adam(0.1)
    one = make_step(lambda w, *_: (jnp.sum(w['sigma']['w'] ** 2), {}), optimizer, 0.5)
    state = init_state(
        0, {'sigma': {'w': jnp.arange(6.0).reshape(2, 3)}, 'lora': {}}, optimizer, ema
    )
    for _ in range(steps):
        state, _ = one(state, None, None, None)
    return state


@pytest.fixture(scope='module')
def states():
    return [make_state(steps) for steps in range(4)]


@pytest.fixture
def folder(tmp_path, states):
    """Checkpoints of steps 1, 2 and 3, of which two stay."""
    with Checkpoints(tmp_path / 'checkpoints', keep=2) as checkpoints:
        for state in states[1:]:
            checkpoints.save(state, {'position': int(state.step)}, CONFIG)
    return tmp_path / 'checkpoints'


def test_everything_comes_back_bitwise(folder, states):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 3
        state, loader = checkpoints.restore(3, states[0], CONFIG)
        assert trees.digest(state) == trees.digest(states[3]) != trees.digest(states[2])
        assert jax.tree.structure(state) == jax.tree.structure(states[3])
        assert loader == {'position': 3}
        assert RunConfig.from_dict(checkpoints.config(3)) == CONFIG
        assert checkpoints.config(3)['sigma']['joint_low'] == [1.0, 2.0]
        older, _ = checkpoints.restore(2, states[0], CONFIG)
        assert trees.digest(older) == trees.digest(states[2])
    assert sorted(p.name for p in folder.iterdir()) == ['step_2', 'step_3']


def test_inference_takes_the_running_average_where_there_is_one(folder, states, tmp_path):
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore_trainable(3)
    assert np.array_equal(found['sigma']['w'], states[3].ema['sigma']['w'])
    assert not np.array_equal(found['sigma']['w'], states[3].trainable['sigma']['w'])
    plain = make_state(1, ema=False)
    with Checkpoints(tmp_path / 'plain', keep=2) as checkpoints:
        checkpoints.save(plain, {}, CONFIG)
    with Checkpoints(tmp_path / 'plain') as checkpoints:
        assert np.array_equal(
            checkpoints.restore_trainable(1)['sigma']['w'], plain.trainable['sigma']['w']
        )


def test_another_config_is_refused_by_name(folder, states):
    other = changed(seed=1, sigma=SETTINGS['sigma'] | {'d_tau': 8, 'joint_high': (2.0, 3.0)})
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(3, states[0], other)
    text = str(caught.value)
    for part in (
        'seed: saved 0, now 1',
        'sigma.d_tau: saved 4, now 8',
        'sigma.joint_high: saved None, now [2.0, 3.0]',
    ):
        assert part in text
    assert 'joint_low' not in text and 'choose another --workdir' in text


def test_settings_that_may_change():
    free = changed(
        steps=99, loader={'num_workers': 4}, log={'every': 1}, checkpoint={'every': 3}
    ).to_dict()
    own = CONFIG.to_dict()
    assert compare(own, free) == []
    assert compare(own, changed(ema=0.5).to_dict()) == ['ema: saved None, now 0.5']


def test_a_checkpoint_that_names_less_has_the_defaults(tmp_path, states):
    """As one written before a setting existed; one that names what is no setting any more is not
    taken for the same.
    """
    now = changed(sigma={'d_tau': 4})
    for step, (more, same) in enumerate([({}, True), ({'gone': 1}, False)], 1):
        old = {'seed': 0, 'steps': 3, 'sigma': {'d_tau': 4}} | more
        with Checkpoints(tmp_path / str(step), keep=1) as checkpoints:
            state = states[step]
            items = {
                'state': ocp.args.StandardSave(state),
                'loader': ocp.args.JsonSave({}),
                'config': ocp.args.JsonSave(old),
            }
            checkpoints._manager.save(step, args=ocp.args.Composite(**items), force=True)
        with Checkpoints(tmp_path / str(step)) as checkpoints:
            if same:
                checkpoints.refuse_other(step, now)
            else:
                with pytest.raises(UserError, match="gone: saved 1, now 'absent'"):
                    checkpoints.refuse_other(step, now)


def test_a_state_with_other_leaves_is_refused(folder):
    other = init_state(
        0, {'sigma': {'w': jnp.zeros((2, 3)), 'b': jnp.zeros(3)}, 'lora': {}}, optax.adam(0.1), True
    )
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(UserError, match='checkpoint 3 in .* cannot be read'),
    ):
        checkpoints.restore(3, other, CONFIG)


def test_half_written_checkpoints_do_not_count(folder):
    for name in ('step_4.orbax-checkpoint-tmp', 'step_5.orbax-checkpoint-tmp-123'):
        (folder / name / 'state').mkdir(parents=True)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 3


@pytest.mark.parametrize('part', ['config/metadata', 'loader/metadata', 'state/_METADATA'])
def test_a_damaged_checkpoint_says_so_and_names_the_one_before(folder, states, part):
    file = folder / 'step_3' / part
    file.write_bytes(file.read_bytes()[:-3])
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(checkpoints.latest(), states[0], CONFIG)
    assert (
        'checkpoint 3 in' in str(caught.value)
        and 'delete' in str(caught.value)
        and 'step_3' in str(caught.value)
    )
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(2, states[0], CONFIG)[1] == {'position': 2}


def test_an_emptied_checkpoint_is_refused_for_inference(folder):
    for file in (folder / 'step_3' / 'state').iterdir():
        if file.is_file():
            file.unlink()
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(UserError, match='checkpoint 3 in .* cannot be read'),
    ):
        checkpoints.restore_trainable(3)


def test_a_checkpoint_of_a_gpu_is_read_where_there_is_none(folder, states):
    """Orbax notes the device of every leaf; here that of a card, as a run upon one leaves it."""
    noted = folder / 'step_3' / 'state' / '_sharding'
    text = noted.read_text()
    assert 'cpu:0' in text
    noted.write_text(text.replace('cpu:0', 'cuda:0'))
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore_trainable(3)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
        assert np.array_equal(found['sigma']['w'], states[3].ema['sigma']['w'])
        assert trees.digest(checkpoints.restore(3, states[0], CONFIG)[0]) == trees.digest(states[3])


def test_low_precision_leaves_keep_their_type(tmp_path):
    leaves = {'sigma': {'w': jnp.arange(3, dtype=jnp.bfloat16) / 3, 'n': jnp.int32(7)}}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(init_state(0, leaves, optax.sgd(0.1)), {}, CONFIG)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore_trainable(0)['sigma']
    assert (
        found['w'].dtype == jnp.bfloat16
        and np.array_equal(found['w'], leaves['sigma']['w'])
        and found['n'] == 7
    )


def test_an_empty_folder_has_none(tmp_path):
    with Checkpoints(tmp_path / 'new') as checkpoints:
        assert checkpoints.latest() is None


def test_parameters_are_counted_by_group():
    assert parameter_count({'sigma': {'w': np.zeros((2, 3)), 'b': np.zeros(3)}, 'lora': {}}) == {
        'sigma': 9,
        'lora': 0,
    }
