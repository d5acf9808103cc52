"""Augmentation: openpi's geometry and colours against independent numpy, and what it must leave
alone.
"""

import colorsys
import itertools

import numpy as np
import pytest
from scipy import ndimage

from sigma_jax.data.loader import augment
from sigma_jax.data.loader.augment import Augment, AugmentConfig, Colours, Geometry
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.processing.tokenizer import load_tokenizer
from tests.data_pipeline import recordings
from tests.loading import make_loader

RNG = np.random.default_rng(0)


def smooth(side: int = 40) -> np.ndarray:
    """An image without sharp edges, so that two ways of interpolation agree."""
    noise = ndimage.gaussian_filter(RNG.normal(size=(side, side, 3)), (3, 3, 0))
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


def came_from(side: int, geometry: Geometry) -> np.ndarray:
    """Coordinates [2 h h] in the source, by the matrices of augmax: translation @ scale @
    rotation.
    """
    c, s = np.cos(geometry.angle), np.sin(geometry.angle)
    grid = np.mgrid[0:side, 0:side] - (side / 2 - 0.5)
    turned = np.tensordot(np.array([[c, s], [-s, c]]), grid, axes=1)
    return geometry.scale * turned + np.reshape(geometry.shift, (2, 1, 1)) + (side / 2 - 0.5)


@pytest.mark.parametrize(
    'geometry',
    [Geometry(0.95, 0.08, (0.7, -0.9)), Geometry(1.0, -0.06, (0, 0)), Geometry(0.6, 0, (-8, 5))],
)
def test_geometry_is_augmax_s_chain_with_black_borders(geometry):
    image = smooth()
    at = came_from(40, geometry)
    want = np.stack(
        [
            ndimage.map_coordinates(image[..., z].astype(float), at, order=1, mode='grid-constant')
            for z in range(3)
        ],
        -1,
    )
    assert np.abs(augment.move(image, geometry) - want).max() <= 1.01
    nearest = ndimage.map_coordinates(image[..., 0], at, order=0, mode='grid-constant')
    assert np.mean(augment.move_nearest(image[..., :1], geometry)[..., 0] == nearest) > 0.99


def test_no_crop_and_no_rotation_is_the_identity():
    image = smooth()
    still = augment.sample_geometry(AugmentConfig(crop=1.0, rotation=0.0), 40, RNG)
    assert np.array_equal(augment.move(image, still), image) and np.array_equal(
        augment.move_nearest(image, still), image
    )
    assert np.array_equal(augment.recolour(image, Colours(True, 0.0, 0.0, 0.0, 0.0)), image)


def test_draws_are_openpi_s():
    draws = [augment.sample_geometry(AugmentConfig(), 224, RNG) for _ in range(400)]
    assert {draw.scale for draw in draws} == {212 / 224}  # int(0.95 * 224)
    shifts, angles = (
        np.array([draw.shift for draw in draws]),
        np.rad2deg([draw.angle for draw in draws]),
    )
    for axis in shifts.T:
        assert 5.8 < axis.max() <= 6 and -6 <= axis.min() < -5.8
    assert 4.9 < angles.max() <= 5 and -5 <= angles.min() < -4.9
    colours = [augment.sample_colours(AugmentConfig(), RNG) for _ in range(400)]
    limits = {'brightness': 0.3, 'contrast': 0.4, 'hue': 0.1, 'saturation': 0.0}
    for name, limit in limits.items():
        amounts = np.array([getattr(one, name) for one in colours])
        assert 0.95 * limit <= amounts.max() <= limit and -limit <= amounts.min() <= -0.95 * limit
    assert 0.4 < np.mean([one.applied for one in colours]) < 0.6


def contrast(x: float, amount: float) -> float:
    """The piece of augmax's curve that `x` lies on."""
    slant = np.tan((amount + 1) * np.pi / 4)
    p1 = (slant - slant**2) / (2 * (1 - slant**2))
    if x < p1:
        return x / slant
    return x / slant + 1 - 1 / slant if x > 1 - p1 else slant * (x - 0.5) + 0.5


@pytest.mark.parametrize(
    ('brightness', 'amount', 'hue', 'saturation'), [(0.2, 0.3, 0.07, 0.0), (-0.3, -0.4, -0.1, 0.5)]
)
def test_colours_are_augmax_s_in_hsv(brightness, amount, hue, saturation):
    image = RNG.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    image[0, 0], image[0, 1], image[0, 2] = 0, 255, 90  # black, white, grey have no hue
    got = augment.recolour(image, Colours(True, brightness, amount, hue, saturation))
    for at in itertools.product(range(6), range(6)):
        h, s, v = colorsys.rgb_to_hsv(*(image[at] / 255))
        v, s = (x * (1 - abs(b)) + max(b, 0) for x, b in ((v, brightness), (s, saturation)))
        want = colorsys.hsv_to_rgb((h + hue) % 1, s, contrast(v, amount))
        assert np.abs(got[at] - 255 * np.array(want)).max() <= 0.51


def element(views: int = 3) -> dict[str, np.ndarray]:
    depth = RNG.integers(0, 900, (2, 2, 40, 40, 1)).astype(np.float32) / 1000
    return {
        'images': np.stack([np.stack([smooth()] * views)] * 2),
        'depth': depth,
        'state': np.ones((2, 6)),
    }


def test_wrist_views_keep_their_geometry_and_depth_follows_its_camera():
    change = Augment(
        AugmentConfig(colour_share=0.0),
        ('up', 'left_wrist', 'side'),
        ('up_depth', 'left_wrist_depth'),
    )
    before = element()
    kept = {key: value.copy() for key, value in before.items()}
    after = change.random_map(before, np.random.default_rng(3))
    assert all(np.array_equal(before[key], kept[key]) for key in before), (
        'decoded windows may be cached'
    )
    assert np.array_equal(after['images'][:, 1], before['images'][:, 1])
    # one draw for all that move
    assert np.array_equal(after['images'][:, 0], after['images'][:, 2])
    assert np.array_equal(after['images'][0], after['images'][1])  # and for all windows of a run
    assert np.mean(after['images'][:, 0] != before['images'][:, 0]) > 0.5
    geometry = augment.sample_geometry(change.config, 40, np.random.default_rng(3))
    assert np.array_equal(
        after['depth'][1, 0], augment.move_nearest(before['depth'][1, 0], geometry)
    )
    assert (
        np.array_equal(after['depth'][:, 1], before['depth'][:, 1])
        and after['state'] is before['state']
    )


def test_colours_change_in_every_view():
    change = Augment(
        AugmentConfig(crop=1.0, rotation=0.0, colour_share=1.0), ('up', 'left_wrist', 'side')
    )
    images = element()['images']
    after = change.random_map({'images': images}, np.random.default_rng(1))['images']
    assert all(np.mean(after[:, i] != images[:, i]) > 0.5 for i in range(3))


@pytest.mark.parametrize(
    'wrong', [{'crop': 0.0}, {'crop': 1.1}, {'rotation': 90.0}, {'hue': -0.1}, {'contrast': 2.0}]
)
def test_amounts_that_make_no_sense(wrong):
    with pytest.raises(UserError, match='expected a crop above 0'):
        AugmentConfig(**wrong)


def test_resume_is_exact_and_images_alone_change(tmp_path):
    out = tmp_path / 'out'
    prepare(recordings.config(recordings.record(out.parent / 'source', (60, 50, 40, 40, 40))), out)
    tokenizer = load_tokenizer(recordings.SETTINGS['tokenizer'])

    def loader(**options):
        settings = {
            'batch_size': 2,
            'sequence_length': 2,
            'shuffle': True,
            'num_epochs': None,
            'drop_remainder': True,
        }
        return make_loader(
            open_shards(out).split('train'), tokenizer=tokenizer, seed=5, **settings, **options
        )

    first = loader(augment=AugmentConfig())
    taken = [next(first) for _ in range(3)]
    state = first.get_state()
    expected = [next(first) for _ in range(4)]
    second = loader(augment=AugmentConfig(), cache=True)
    second.set_state(state)
    for want in expected:
        got = next(second)
        assert all(np.array_equal(got[key], want[key]) for key in want)
    plain = loader()
    for changed in taken:
        batch = next(plain)
        assert all(np.array_equal(batch[key], changed[key]) for key in batch if key != 'images')
        assert batch['images'].shape == changed['images'].shape
    assert any(
        not np.array_equal(a['images'], b['images']) for a, b in zip(taken, loader(), strict=False)
    )
