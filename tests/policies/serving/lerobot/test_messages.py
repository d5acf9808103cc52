"""What a client says is checked before it is believed."""

import math

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.policies.serving.lerobot import wire
from sigma_jax.policies.serving.lerobot.messages import (
    Seen,
    Setup,
    read_seen,
    read_setup,
    setup_of_joints,
)
from tests.policies.serving.lerobot.client import (
    JOINTS,
    about,
    pickled,
    readings,
    recorded,
    seen,
    setup,
)

SETUP = Setup(JOINTS, {'up': 'observation.images.up'}, 50, ('pi05', 'x', 'cpu'))


def test_lerobot_s_setup_is_read():
    data = wire.read_data(recorded()['SendPolicyInstructions/0/0'])
    cameras = {name: f'observation.images.{name}' for name in ('up', 'side')}
    want = Setup(JOINTS, cameras, 50, ('pi05', 'lerobot/pi05_base', 'cpu'))
    assert read_setup(data) == want == read_setup(setup())
    example = read_setup(data).example()
    shapes = {key: x.shape for key, x in example.items() if key != 'task'}
    assert shapes.pop('observation.state') == (6,) and set(shapes.values()) == {(4, 6, 3)}


def test_lerobot_s_observation_is_read_and_told_in_the_policy_s_words():
    data = wire.Parts(1 << 20).add(recorded()['SendObservations/0/0'])
    found, want = read_seen(data), about()['observation']
    assert (found.timestep, found.must_go) == (0, True) and found.timestamp > 1.7e9
    given = read_setup(setup()).observation(found)
    assert set(given) == {
        'observation.state',
        'observation.images.up',
        'observation.images.side',
        'task',
    }
    state = np.array([want[name] for name in JOINTS], np.float32)
    assert given['observation.state'].dtype == np.float32
    assert np.array_equal(given['observation.state'], state)
    for name in ('up', 'side'):
        assert given[f'observation.images.{name}'].tolist() == want[name]
    assert given['task'] == 'put the brick into the box'


def test_joints_come_in_the_order_of_their_names_and_not_of_the_readings():
    """As of LeRobot's hope_jr_arm, which reads its shoulder last."""
    shuffled = dict(reversed(readings(3).items()))
    want = [readings(3)[name] for name in JOINTS]
    got = SETUP.state(read_seen(seen(observation=shuffled)))
    assert np.array_equal(got, np.array(want, np.float32))
    other = Setup(JOINTS[::-1], {}, 50, ('', '', ''))
    assert np.array_equal(other.state(read_seen(seen(3))), got[::-1])


def test_numbers_of_numpy_are_numbers():
    values = (np.float32(0.5), np.float64(0.5), np.array(0.5), np.int16(3))
    want = [0.5, 0.5, 0.5, 3.0, *[readings()[name] for name in JOINTS[4:]]]
    changed = readings(**dict(zip(JOINTS, values, strict=False)))
    got = SETUP.state(read_seen(seen(observation=changed)))
    assert np.array_equal(got, np.array(want, np.float32))


def test_readings_that_nobody_asked_for_are_left_out():
    """LeRobot's unitree_g1 gives an IMU and a list beside its joints."""
    more = readings(**{'imu.x': 1.0, 'remote': [0, 1], 'battery': None, 'top_depth': np.zeros(3)})
    given = SETUP.observation(read_seen(seen(observation=more)))
    assert set(given) == {'observation.state', 'observation.images.up', 'task'}


def test_depth_is_left_out_and_cameras_are_renamed():
    depth = {'dtype': 'image', 'shape': (4, 4, 1), 'names': [], 'info': {'is_depth_map': True}}
    colour = depth | {'shape': (4, 4, 3), 'info': {'is_depth_map': False}}
    plain = {'dtype': 'image', 'shape': (4, 4, 3), 'names': []}
    features = {
        'observation.state': {'dtype': 'float32', 'shape': (1,), 'names': ['a.pos']},
        'observation.images.top_depth': depth,
        'observation.images.top': colour,
        'observation.images.wrist': plain,
    }
    renamed = {'observation.images.top': 'observation.images.up'}
    found = read_setup(setup(lerobot_features=features, rename_map=renamed))
    assert found.joints == ('a.pos',)
    wrist = 'observation.images.wrist'
    assert found.cameras == {'top': 'observation.images.up', 'wrist': wrist}
    assert found.example()['observation.images.up'].shape == (4, 4, 3)


def features(**state) -> dict:
    camera = {'observation.images.up': {'dtype': 'image', 'shape': (4, 4, 3)}}
    return camera | ({'observation.state': state} if state else {})


def many_cameras(count) -> dict:
    camera = {'dtype': 'image', 'shape': (4096, 4096, 3)}
    cameras = {f'observation.images.c{n}': camera for n in range(count)}
    return {'observation.state': {'names': ['a']}} | cameras


def test_a_setup_cannot_ask_for_much_memory():
    """A black image of each camera is made for the first program."""
    example = read_setup(setup(lerobot_features=many_cameras(16))).example()
    assert sum(x.nbytes for key, x in example.items() if key != 'task') < 1 << 24


@pytest.mark.parametrize(
    'shape', [None, (4, 4), (4, 4, 1), (0, 4, 3), (10**9, 4, 3), (True, 4, 3), 'abc', (4.0, 4, 3)]
)
def test_a_shape_that_cannot_be_counts_for_nothing(shape):
    camera = {'observation.images.up': {'shape': shape}}
    state = {'observation.state': {'names': ['a']}}
    found = read_setup(setup(lerobot_features=camera | state))
    assert found.example()['observation.images.up'].shape == (480, 640, 3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'actions_per_chunk': 0}, 'expected 1 to 10,000 as actions_per_chunk .*, got 0;'),
        ({'actions_per_chunk': True}, 'as actions_per_chunk'),
        ({'actions_per_chunk': 1e9}, 'as actions_per_chunk'),
        ({'device': 3}, 'texts as policy_type, pretrained_name_or_path, device'),
        ({'pretrained_name_or_path': 'x' * 5000}, 'texts as policy_type'),
        ({'rename_map': []}, 'texts by texts as rename_map in the RemotePolicyConfig, got list'),
        ({'rename_map': {'a': 1}}, 'texts by texts as rename_map'),
        ({'lerobot_features': []}, 'dictionaries as lerobot_features .*, got list'),
        ({'lerobot_features': {'a': []}}, 'dictionaries as lerobot_features'),
        ({'lerobot_features': features()}, 'names of joints in observation.state .*, got None'),
        ({'lerobot_features': features(names=[])}, 'names of joints in observation.state'),
        ({'lerobot_features': features(names=('a',))}, 'names of joints in observation.state'),
        ({'lerobot_features': features(names=[1])}, 'names of joints in observation.state'),
        ({'lerobot_features': features(names=['a', 'a'])}, 'that differ in .*, got .a, a.;'),
        (
            {'lerobot_features': {'observation.state': {'names': ['a']}}},
            r'expected 1 to 16 cameras in .*, got observation.state; give the .*--robot.cameras',
        ),
        (
            {'lerobot_features': many_cameras(17)},
            r'expected 1 to 16 cameras in .*images.c6 and 10 more; give',
        ),
        ({'control_mode': 1}, 'expected policy_type, .* in a RemotePolicyConfig, got .*control_m'),
    ],
)
def test_a_wrong_setup_is_reported(changes, message):
    with pytest.raises(UserError, match=message):
        read_setup(setup(**changes))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'timestamp': math.nan}, 'seconds as timestamp in the TimedObservation, got nan'),
        ({'timestamp': 'now'}, "seconds as timestamp .*, got 'now'"),
        ({'timestep': -1}, 'a number of steps as timestep'),
        ({'timestep': 2**31}, 'a number of steps as timestep'),
        ({'timestep': 1.0}, 'a number of steps as timestep'),
        ({'must_go': 1}, 'True or False as must_go'),
        ({'observation': [1]}, 'a dictionary as observation .*, got list'),
        ({'observation': {'a': {'b': 1}}}, 'a number, text or array as a in the .*, got dict'),
        ({'observation': {'a': [[1]]}}, 'a number, text or array as a'),
        ({'observation': {'a': ((),)}}, 'a number, text or array as a'),
        ({'more': 1}, 'expected timestamp, timestep, observation in a TimedObservation, got more'),
    ],
)
def test_a_wrong_observation_is_reported(changes, message):
    with pytest.raises(UserError, match=message):
        read_seen(seen(**changes))


def test_an_object_of_another_kind_is_reported():
    for wrong in (pickled('RemotePolicyConfig', {'a': 1}), b'\x80\x04N.', b'\x80\x04]q\x00h\x00a.'):
        with pytest.raises(UserError, match='expected a TimedObservation in the message, got'):
            read_seen(wrong)
    with pytest.raises(UserError, match='expected a RemotePolicyConfig .*, got TimedObservation'):
        read_setup(seen())
    unfilled = b'\x80\x04clerobot.async_inference.helpers\nTimedObservation\n)\x81.'
    with pytest.raises(UserError, match='expected a TimedObservation'):
        read_seen(unfilled)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({JOINTS[2]: math.nan}, 'a number of elbow_flex.pos in the observation, got nan'),
        ({JOINTS[2]: -math.inf}, 'a number of elbow_flex.pos in the observation, got -inf'),
        ({JOINTS[2]: 1e39}, 'a number of elbow_flex.pos'),
        ({JOINTS[2]: True}, 'a number of elbow_flex.pos'),
        ({JOINTS[2]: '1'}, 'a number of elbow_flex.pos'),
        ({JOINTS[2]: np.zeros(2)}, r'a number of elbow_flex.pos .*, got float64 \[2\]'),
        ({'task': 3}, 'a text as its task'),
        (
            {'up': np.zeros((4, 4), np.uint8)},
            r'uint8 \[height width 3\] of .* as up .* uint8 \[4, 4\]',
        ),
        ({'up': np.zeros((4, 4, 3))}, r'as up in the observation, got float64 \[4, 4, 3\]'),
        ({'up': np.zeros((4, 4, 4), np.uint8)}, 'as up in the observation'),
        ({'up': np.zeros((0, 4, 3), np.uint8)}, 'as up in the observation'),
        ({'up': np.zeros((1, 5000, 3), np.uint8)}, 'of at most 4096 pixels a side, as up'),
        ({'up': None}, 'as up in the observation, got None'),
    ],
)
def test_a_wrong_reading_is_reported(changes, message):
    with pytest.raises(UserError, match=message):
        SETUP.observation(read_seen(seen(observation=readings(**changes))))


@pytest.mark.parametrize('gone', [JOINTS[0], 'up', 'task'])
def test_a_reading_that_is_not_there_is_reported(gone):
    left = {key: x for key, x in readings().items() if key != gone}
    with pytest.raises(UserError, match=f'expected {gone} in an observation, got .*; send what'):
        SETUP.observation(read_seen(seen(observation=left)))


def test_a_client_is_known_by_the_policy_s_joints_and_its_own_pictures():
    more = readings(depth=np.zeros((4, 4, 1), np.uint16), count=3)
    found = setup_of_joints(JOINTS, Seen(1.0, 0, False, more))
    assert found.joints == JOINTS
    assert found.cameras == {name: f'observation.images.{name}' for name in ('up', 'side')}
