"""Does a robot fit a policy: which actions are relative, what they count from, and which camera
feeds which view.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.backbones.pi05_prompt import prompt_parts
from sigma_jax.convert.load_base import Base
from sigma_jax.data.shards.directory import Shards, Split
from sigma_jax.data.shards.meta import source_keys
from sigma_jax.errors import UserError
from sigma_jax.policies import base_actions
from sigma_jax.processing import fitting
from sigma_jax.processing.actions import action_origin, action_scaling
from sigma_jax.processing.normalize import compute_statistics, normalize
from sigma_jax.processing.processor import of_policy
from sigma_jax.processing.spec import OURS, ProcessorConfig, read_policy, to_json
from sigma_jax.processing.tokenizer import load_tokenizer
from tests import golden, metas

ARM = ProcessorConfig(relative_joints=(True,) * 6 + (False,), cameras=('up', 'side'))


def names(width):
    return [f'j{n}' for n in range(width)]


def stats(states, actions):
    rng = np.random.default_rng(states)
    draw = {'state': rng.normal(2, 3, (500, states)), 'actions': rng.normal(1, 2, (500, actions))}
    return {name: compute_statistics(x.astype(np.float32)) for name, x in draw.items()}


@pytest.mark.parametrize(
    'given', [('False',) * 6, ('a',) * 6, (0.5,) * 6, (1, 0, 1, 1, 1, 1), 'True', (True, None)]
)
def test_flags_are_true_or_false(given):
    with pytest.raises(
        UserError, match='config.relative_joints: expected a row of True or False, got'
    ):
        fitting.relative_joints(given, ARM, names(6), names(6), 32)


def test_the_first_states_are_subtracted_where_there_are_more_of_them():
    """LeRobot 0.6.1's to_relative_actions gives 10, 9, 8, 7, 6, 5, 10 for actions of 10, 8 states
    and this mask.
    """
    found = stats(8, 7)
    scaling = action_scaling(found, found, ARM.relative_joints)
    state = np.arange(8, dtype=np.float32)
    origin = np.asarray(action_origin(jnp.asarray(normalize(state, found['state'])), scaling))
    np.testing.assert_allclose(10 - origin[0], [10, 9, 8, 7, 6, 5, 10], atol=1e-5)


@pytest.mark.parametrize(('states', 'actions'), [(9, 7), (32, 7), (7, 7), (6, 7)])
def test_what_actions_count_from_for_any_width_of_the_state(states, actions):
    found = stats(states, actions)
    scaling = action_scaling(found, found, ARM.relative_joints)
    state = np.random.default_rng(1).normal(2, 3, (4, states)).astype(np.float32)
    origin = np.asarray(action_origin(jnp.asarray(normalize(state, found['state'])), scaling))
    np.testing.assert_allclose(origin[:, 0, :6], state[:, :6], atol=1e-5)
    assert not origin[..., 6:].any()


def test_statistics_of_relative_actions_with_more_states(monkeypatch, tmp_path):
    pairs = [(np.arange(3.0) * n, np.full((4, 2), 5.0) + n) for n in range(6)]
    records = type('R', (list,), {'numbers': list.__getitem__})(pairs)
    monkeypatch.setattr(Split, 'records', lambda _: records)
    monkeypatch.setattr(Shards, 'statistics', stats(3, 2))
    found = Shards(tmp_path, metas.meta()).relative_statistics((False, True))['actions']
    want = np.concatenate([a - [0, s[1]] for s, a in pairs])
    np.testing.assert_allclose(found.q99, np.quantile(want, 0.99, axis=0))


def test_flags_of_the_base_and_of_the_run():
    def find(given, policy, states, actions):
        return fitting.relative_joints(given, policy, names(states), names(actions), 32)

    assert find((), ARM, 8, 7) == ARM.relative_joints and find((True, False), ARM, 2, 2) == (
        True,
        False,
    )
    wide = dataclasses.replace(ARM, relative_joints=(True,) * 32)
    assert find((), wide, 7, 7) == (True,) * 7  # as wide as the model: padding
    assert find((), OURS, 14, 14) == () and find((False,) * 14, ARM, 14, 14) == (False,) * 14
    for given, policy, states, actions, message in (
        (
            (),
            ARM,
            14,
            14,
            'for the 14 actions of these data, got 7 flags from the base; for another robot',
        ),
        (
            (True,) * 6,
            ARM,
            7,
            7,
            'for the 7 actions of these data, got 6 flags from config.relative_joints',
        ),
        ((), wide, 5, 7, 'a state for each relative action, got 5 states and action 6 relative'),
    ):
        with pytest.raises(UserError, match=message):
            find(given, policy, states, actions)


def test_another_robot_is_reported_before_anything_is_sampled():
    base = Base(dataclasses.replace(golden.config(), action_dim=32), None, '', stats(7, 7), ARM)
    assert (
        len(
            base_actions.check_robot(base, metas.meta(state_names=names(7), action_names=names(7)))[
                'state'
            ].mean
        )
        == 7
    )
    with pytest.raises(UserError, match='got 7 flags from the base'):
        base_actions.check_robot(base, metas.meta(state_names=names(14), action_names=names(14)))
    with pytest.raises(
        UserError, match='a robot of up to 8 actions, which the base has, got 14 in these data'
    ):
        narrow = dataclasses.replace(base, config=golden.config(), policy=OURS)
        base_actions.check_robot(narrow, metas.meta(state_names=names(14), action_names=names(14)))
    absolute = dataclasses.replace(base, policy=OURS)
    with pytest.raises(UserError, match="expected 14 numbers for 'state'"):
        base_actions.check_robot(
            absolute, metas.meta(state_names=names(14), action_names=names(14))
        )


SWAP = (
    ('observation.images.up', 'observation.images.side'),
    ('observation.images.side', 'observation.images.up'),
)
NEW = (
    ('observation.images.front', 'observation.images.up'),
    ('observation.images.hand', 'observation.images.side'),
)
GROUPED = (('front.rgb', 'observation.images.up'), ('hand.rgb', 'observation.images.side'))


@pytest.mark.parametrize(
    ('renames', 'meta', 'fits'),
    [
        (NEW, {'camera_names': ['front', 'hand']}, True),
        (NEW, {'camera_names': ['hand', 'front']}, False),
        (NEW, {'camera_names': ['up', 'hand']}, True),
        (NEW, {'camera_names': ['hand', 'up']}, False),
        (SWAP, {'camera_names': ['side', 'up']}, True),
        (SWAP, {'camera_names': ['up', 'side']}, False),
        ((), {'camera_names': ['side', 'up']}, False),
        (
            GROUPED,
            {'camera_names': ['front.rgb', 'hand.rgb'], 'cameras': ['front.rgb', 'hand.rgb']},
            True,
        ),
        (
            GROUPED,
            {'camera_names': ['hand.rgb', 'front.rgb'], 'cameras': ['hand.rgb', 'front.rgb']},
            False,
        ),
        (
            NEW,
            {
                'camera_names': ['b', 'a'],
                'cameras': ['b', 'a'],
                'camera_map': [['a', 'observation.images.front'], ['b', 'observation.images.hand']],
            },
            False,
        ),
    ],
)
def test_a_rename_map_says_which_camera_is_which_view(renames, meta, fits):
    policy, names = dataclasses.replace(ARM, rename_map=renames), meta['camera_names']
    keys = source_keys(meta.get('cameras', [''] * len(names)), meta.get('camera_map', ()))
    if fits:
        fitting.check_cameras(policy, names, keys)
        return
    with pytest.raises(UserError, match='cameras in the order of the base'):
        fitting.check_cameras(policy, names, keys)


def test_a_frame_goes_to_the_view_that_the_map_names():
    policy, found = dataclasses.replace(ARM, rename_map=SWAP, prompt_state_dim=0), stats(2, 2)
    frames = {
        name: np.full((28, 28, 3), level, np.uint8) for name, level in (('up', 0), ('side', 255))
    }
    tokenizer = load_tokenizer('assets/tokenizer/tokenizer.json')
    processor = of_policy(policy, found, tokenizer, 28, prompt_parts)
    images = processor.inputs(frames, np.zeros(2, np.float32), 'x')['images']
    assert images[0].min() == 255 and images[1].max() == 0


def test_a_rename_map_is_kept_in_policy_json(tmp_path):
    policy = dataclasses.replace(ARM, rename_map=NEW)
    (tmp_path / 'policy.json').write_text(to_json(policy))
    assert read_policy(tmp_path) == policy and json.loads(to_json(policy))['rename_map'] == dict(
        NEW
    )
    (tmp_path / 'policy.json').write_text('{"rename_map": {"a": 3}}')
    with pytest.raises(
        UserError, match="the policy's name for each .* 'rename_map' in .*; mend it"
    ):
        read_policy(tmp_path)


@pytest.mark.parametrize(
    ('policy', 'cameras', 'order'),
    [
        (ProcessorConfig(cameras=('up', 'side'), rename_map=SWAP), ['up', 'side'], 'side, up'),
        (
            ProcessorConfig(cameras=('top', 'left', 'right')),
            ['right', 'extra', 'top'],
            'top, right, extra',
        ),
        (
            ProcessorConfig(cameras=('a', 'b'), rename_map=(('o.x', 'o.b'), ('o.y', 'o.a'))),
            ['x', 'y'],
            'y, x',
        ),
    ],
)
def test_the_order_that_is_advised_is_taken(policy, cameras, order):
    with pytest.raises(UserError, match=f'config.data.cameras in the order {order}$'):
        fitting.check_cameras(policy, cameras, [''] * len(cameras))
    fitting.check_cameras(policy, order.split(', '), [''] * len(cameras))
