"""What openpi's clients call their robot's parts reaches the policy under its own names."""

import dataclasses

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import IMAGES, STATE, TASK, PolicySpec
from sigma_jax.policies.serving.openpi.keys import (
    PRESETS,
    KeyMap,
    flatten,
    names,
    parse_keys,
    translate,
)
from sigma_jax.processing.spec import OPENPI_CAMERAS, ProcessorConfig

PI05 = PolicySpec(OPENPI_CAMERAS, 8, 7, 50, 10, ProcessorConfig(cameras=OPENPI_CAMERAS))
TINY = dataclasses.replace(PI05, cameras=('up', 'side'))
FREE = dataclasses.replace(PI05, cameras=())


def picture(n: int, channels_first: bool = False) -> np.ndarray:
    shape = (3, 4, 5) if channels_first else (4, 5, 3)
    return np.full(shape, n, np.uint8)


def keys_of(found: dict) -> dict:
    """Which picture each key of the policy holds."""
    return {key: int(x.flat[0]) for key, x in found.items() if key.startswith(IMAGES)}


def test_a_libero_client():
    seen = {
        'observation/image': picture(1),
        'observation/wrist_image': picture(2),
        'observation/state': np.arange(8.0),
        'prompt': 'open the drawer',
    }
    found = translate(seen, parse_keys('libero', PI05))
    assert keys_of(found) == {IMAGES + 'base_0_rgb': 1, IMAGES + 'left_wrist_0_rgb': 2}
    assert found[STATE].tolist() == list(range(8)) and found[STATE].dtype == np.float32
    assert found[TASK] == 'open the drawer'


def test_a_droid_client_whose_state_is_in_two_parts():
    seen = {
        'observation/exterior_image_1_left': picture(1),
        'observation/wrist_image_left': picture(2),
        'observation/joint_position': np.arange(7.0),
        'observation/gripper_position': np.array([9.0]),
        'prompt': 'x',
    }
    found = translate(seen, parse_keys('droid', PI05))
    assert found[STATE].tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    number = seen | {'observation/gripper_position': np.float64(9)}
    assert np.array_equal(translate(number, parse_keys('droid', PI05))[STATE], found[STATE])


def test_an_aloha_client_with_folders_and_pictures_channels_first():
    cameras = ('cam_low', 'cam_right_wrist', 'cam_high')
    images = {name: picture(n, channels_first=True) for n, name in enumerate(cameras)}
    seen = flatten({'images': images, 'state': np.zeros(14, np.float32), 'prompt': 'x'})
    found = translate(seen, parse_keys('aloha', PI05))
    assert keys_of(found) == {IMAGES + 'base_0_rgb': 2, IMAGES + 'right_wrist_0_rgb': 1}
    assert list(keys_of(found)) == [IMAGES + 'base_0_rgb', IMAGES + 'right_wrist_0_rgb']


def test_a_policy_that_takes_any_camera_sees_them_in_the_maps_order():
    """Neither the client's order nor that of its names counts."""
    keys = parse_keys(f'wrist=side,front=up,{STATE}={STATE},{TASK}={TASK}', FREE)
    pictures = {'front': picture(1), 'wrist': picture(2)}
    for names_of in (pictures, dict(reversed(pictures.items()))):
        found = translate(names_of | {STATE: np.zeros(8), TASK: 'x'}, keys)
        assert list(keys_of(found).items()) == [(IMAGES + 'side', 2), (IMAGES + 'up', 1)]


def test_lerobots_keys_pass_as_they_are():
    seen = {IMAGES + 'top': picture(3), STATE: [1, 2.5], TASK: 'x'}
    found = translate(seen, parse_keys('lerobot', FREE))
    assert keys_of(found) == {IMAGES + 'top': 3} and found[STATE].tolist() == [1, 2.5]


def test_a_preset_is_changed_by_pairs_and_keeps_the_order_of_its_views():
    text = 'libero,observation/wrist_image=side,observation/image=observation.images.up'
    keys = parse_keys(text, TINY)
    assert keys.cameras == (('observation/image', 'up'), ('observation/wrist_image', 'side'))
    assert (keys.state, keys.task) == (PRESETS['libero'].state, 'prompt')
    text = 'droid,observation/joint_position=observation.state,observation/gripper_position='
    keys = parse_keys(text, PI05)
    assert keys.state == ('observation/joint_position',)
    assert keys.unused == ('observation/gripper_position',)


def test_pairs_alone_make_a_map():
    keys = parse_keys(f'a=up, b={STATE}, c={STATE}, d={TASK}, e=', TINY)
    assert keys == KeyMap((('a', 'up'),), ('b', 'c'), 'd', ('e',))
    assert names(keys) == ('a', 'b', 'c', 'd')
    seen = {'a': picture(1), 'b': 1.0, 'c': np.arange(2), 'd': 'x', 'e': 'anything'}
    assert translate(seen, keys)[STATE].tolist() == [1, 0, 1]


def test_a_camera_may_be_called_by_the_policys_rename_map():
    pair = 'observation.images.top', 'observation.images.up'
    spec = dataclasses.replace(TINY, processor=ProcessorConfig(rename_map=(pair,)))
    assert parse_keys(f'a=top,b={STATE},c={TASK}', spec).cameras == (('a', 'top'),)


@pytest.mark.parametrize(
    ('text', 'spec', 'sentence'),
    [
        ('liberoo', PI05, "expected keys as one of lerobot, libero, .*, got 'liberoo'"),
        ('', PI05, "got ''"),
        ('libero,x', PI05, "expected keys as pairs CLIENT=POLICY, got 'x'"),
        ('libero,=up', PI05, "got '=up'"),
        ('libero', TINY, 'expected cameras out of up, side, got base_0_rgb, left_wrist_0_rgb; .*'
                         'observation/image=CAMERA,observation/wrist_image=CAMERA'),
        ('a=up', TINY, 'expected keys for a camera, observation.state and task'),
        ('libero,prompt=', PI05, 'expected keys for a camera'),
    ],
)  # fmt: skip
def test_maps_that_make_no_sense(text, spec, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_keys(text, spec)


GOOD = {
    'observation/image': picture(1),
    'observation/wrist_image': picture(2),
    'observation/state': np.arange(8.0),
    'prompt': 'x',
}


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'observation/stat': 1}, 'expected keys out of .*, got observation/stat; leave it out'),
        ({f'{"k" * 90}{n}': 1 for n in range(9)}, r'got k+.*\.\.\.; leave it out'),
        ({'observation/image': 'a path'}, 'expected observation/image as uint8 .*, got str'),
        ({'observation/image': [[1]]}, 'got list'),
        ({'observation/image': picture(1) / 255}, r'got float64 \[4, 5, 3\]'),
        ({'observation/image': picture(1)[None]}, r'got uint8 \[1, 4, 5, 3\]'),
        ({'observation/image': picture(1)[..., :2]}, r'got uint8 \[4, 5, 2\]'),
        ({'observation/image': picture(1)[:0]}, r'sides of 1 to 4096 pixels, got uint8 \[0, 5, 3'),
        ({'observation/image': np.zeros((1, 5000, 3), np.uint8)}, r'got uint8 \[1, 5000, 3\]'),
        ({'observation/state': None}, 'expected observation/state in an observation, got obs'),
        ({'observation/state': 'x'}, 'expected observation/state as an array of numbers, got str'),
        ({'observation/state': [1, 'x']}, 'as an array of numbers, got list'),
        ({'observation/state': [[1]]}, 'as an array of numbers, got list'),
        ({'observation/state': [True]}, 'as an array of numbers, got list'),
        ({'observation/state': np.zeros((2, 4))}, r'got float64 \[2, 4\]'),
        ({'observation/state': np.ones(8, bool)}, r'got bool \[8\]'),
        ({'prompt': None}, 'expected prompt, the instruction, as a text, got none; send it, or'),
        ({'prompt': b'x'}, 'as a text, got bytes'),
        ({'prompt': ['x', 'y']}, 'as a text, got list'),
    ],
)  # fmt: skip
def test_a_wrong_observation_is_told_under_the_clients_names(change, sentence):
    seen = {key: x for key, x in (GOOD | change).items() if x is not None}
    with pytest.raises(UserError, match=sentence) as caught:
        translate(seen, parse_keys('libero', PI05))
    assert len(str(caught.value)) < 500


def test_the_default_instruction_stands_in():
    seen = {key: x for key, x in GOOD.items() if key != 'prompt'}
    keys = parse_keys('libero', PI05)
    assert translate(seen, keys, 'be careful')[TASK] == 'be careful'
    assert translate(GOOD, keys, 'be careful')[TASK] == 'x'


def test_what_a_setting_lacks_is_told_as_a_setting_says_it():
    with pytest.raises(UserError, match='got a=up; add CLIENT=POLICY pairs for all three'):
        parse_keys('a=up', FREE)
    with pytest.raises(UserError, match="expected keys as pairs CLIENT=POLICY, got 'a=b=c'"):
        parse_keys('a=b=c', FREE)


def test_an_observation_of_nothing_is_told_so():
    with pytest.raises(UserError, match='expected .*state in an observation, got nothing; add it'):
        translate({}, PRESETS['lerobot'])
