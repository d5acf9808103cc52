"""What training reads of a window is what a robot in the same place would be shown: the loader's
inputs equal a processor's for the camera frames, the joint reading and the task behind them.
"""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from sigma_jax.backbones.pi05_prompt import prompt_parts
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.processing import images
from sigma_jax.processing.actions import action_origin, action_scaling, unnormalize_actions
from sigma_jax.processing.images import BLACK, resize_with_pad, unit_range
from sigma_jax.processing.normalize import FORMULAS, Scaling, Statistics, normalize
from sigma_jax.processing.processor import Processor, of_policy, of_shards
from sigma_jax.processing.spec import ProcessorConfig
from sigma_jax.processing.tokenizer import NO_STATE, load_tokenizer
from tests.data_pipeline import recordings
from tests.loading import make_loader

JOINTS, SIDE, WIDE = 6, 32, 32  # of the robot; pixels; the model's actions
CAMERAS = ('up', 'side')
SCALINGS = [
    Scaling(mode, formula, epsilon)
    for formula, modes in FORMULAS.items()
    for mode in modes
    for epsilon in (None, 1e-4)
]
TRIALS = 3 * len(SCALINGS)
SIZES = {"the model's size": (SIDE, SIDE), 'wide': (48, 72), 'tall and small': (25, 18)}
ROUNDING = 1 / 255  # of the model's units: half a grey level


def frame(episode: int, number: int, camera: str, size: tuple[int, int]) -> np.ndarray:
    """Noise, so that every pixel shows how it was made."""
    seed = (episode, number, recordings.CAMERAS.index(camera))
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(image: np.ndarray, quality: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.fixture(scope='module')
def tokenizer():
    return load_tokenizer(recordings.SETTINGS['tokenizer'])


@pytest.fixture(scope='module', params=[(s, name) for s in images.STYLES for name in SIZES])
def shards(request, tmp_path_factory):
    """(style, size of the source's frames, folder) of shards that hold images without loss."""
    style, name = request.param
    folder = tmp_path_factory.mktemp('shards')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordings, 'camera_image', lambda *which: frame(*which, SIZES[name]))
        patch.setattr(images, 'encode_jpeg', png)
        source = recordings.record(folder / 'source', (24, 20, 20))
        settings = {'resize': style, 'prompt_state_dim': 8, 'max_prompt_len': 160}
        prepare(recordings.config(source, **settings), folder / 'out')
    return style, SIZES[name], folder / 'out'


def random_statistics(rng: np.random.Generator, scaling: Scaling) -> Statistics:
    """Of joints in degrees, one of which hardly moves; all columns that any mode reads."""
    values = rng.normal(rng.normal(0, 30, JOINTS), rng.uniform(1, 40, JOINTS), (400, JOINTS))
    values[:, rng.integers(JOINTS)] = rng.normal()
    levels = {'min': 0.0, 'q01': 0.01, 'q10': 0.1, 'q90': 0.9, 'q99': 0.99, 'max': 1.0}
    columns = {name: np.quantile(values, level, axis=0) for name, level in levels.items()}
    return Statistics(values.mean(0), values.std(0), **columns, scaling=scaling)


def random_policy(rng: np.random.Generator, style: str, number: int) -> ProcessorConfig:
    """Every scaling in turn, the rest by chance."""
    pick = rng.integers
    return ProcessorConfig(
        relative_joints=tuple(pick(2, size=JOINTS) > 0) if pick(2) else (),
        state=SCALINGS[number % len(SCALINGS)],
        actions=SCALINGS[pick(len(SCALINGS))],
        prompt_state_dim=(None, 0, 32, NO_STATE)[pick(4)],
        max_prompt_len=(None, 150, 200)[pick(3)],
        resize=style,
        image_padding=(BLACK, -3.0)[pick(2)],
        cameras=(CAMERAS, ('top', *CAMERAS), ())[pick(3)],
    )


def trials(style: str):
    """(generator, policy, statistics) without end of what they may be."""
    for number in range(TRIALS):
        rng = np.random.default_rng(number)
        policy = random_policy(rng, style, number)
        statistics = {
            name: random_statistics(rng, scaling) for name, scaling in policy.scalings().items()
        }
        yield rng, policy, statistics


def example(loader) -> tuple[dict, int]:
    """The first window of a loader without its axes, and its record's number."""
    batch = {key: x[0, 0] for key, x in next(loader).items()}
    return batch, int(batch['record'])


def seen_by_robot(shards, number: int, meta) -> tuple[dict, np.ndarray, str]:
    """(frames by camera, raw state, task) of a record, from the recording."""
    _, size, folder = shards
    records = open_shards(folder).split('train').records()
    which = int(records.index.episode[number]), int(records.index.frame[number])
    views = {
        name: frame(*which, key, size)
        for name, key in zip(CAMERAS, recordings.CAMERAS, strict=True)
    }
    return views, records.numbers(number)[0], meta.tasks[records.index.text_id[number]]


def in_model_units(x: np.ndarray) -> np.ndarray:
    return unit_range(x) if x.dtype == np.uint8 else x


def test_what_the_loader_gives_is_what_a_robot_would_be_shown(shards, tokenizer):
    """Bit for bit, images included, but for LeRobot's resize, which shards round to 8 bits."""
    style, size, folder = shards
    meta, exact = open_shards(folder).meta, style == 'openpi' or size == (SIDE, SIDE)
    for _, policy, statistics in trials(style):
        settings = {'batch_size': 1, 'tokenizer': tokenizer, 'norm_stats': statistics}
        want, number = example(
            make_loader(open_shards(folder).split('train'), policy=policy, **settings)
        )
        processor = of_shards(policy, statistics, tokenizer, meta, prompt_parts)
        got = processor.inputs(*seen_by_robot(shards, number, meta))
        assert set(got) <= set(want)
        for key in set(got) - {'images'}:
            assert got[key].dtype == want[key].dtype, key
            assert np.array_equal(got[key], want[key]), (key, policy)
        if exact:
            assert got['images'].dtype == want['images'].dtype
            assert np.array_equal(got['images'], want['images']), policy
        else:
            pair = in_model_units(got['images']), in_model_units(want['images'])
            assert 0 < np.abs(pair[0] - pair[1]).max() <= ROUNDING * 1.0001


def test_a_frame_as_shards_hold_it_gives_the_same_bits(shards, tokenizer):
    """Whatever its origin: it is of the model's size, and nothing is resized or padded again."""
    style, _, folder = shards
    meta, records = open_shards(folder).meta, open_shards(folder).split('train').records()
    for _, policy, statistics in list(trials(style))[:8]:
        policy = dataclasses.replace(policy, image_padding=BLACK)
        processor = of_shards(policy, statistics, tokenizer, meta, prompt_parts)
        settings = {'batch_size': 1, 'tokenizer': tokenizer, 'norm_stats': statistics}
        want, number = example(
            make_loader(open_shards(folder).split('train'), policy=policy, **settings)
        )
        views = dict(zip(CAMERAS, records[number].images, strict=True))
        got = processor.inputs(views, *seen_by_robot(shards, number, meta)[1:])
        assert all(np.array_equal(got[key], want[key]) for key in got)


def test_an_absent_camera_changes_nothing_but_its_own_view(shards, tokenizer):
    style, _, folder = shards
    meta = open_shards(folder).meta
    for rng, policy, statistics in trials(style):
        processor = of_shards(policy, statistics, tokenizer, meta, prompt_parts)
        views, state, task = seen_by_robot(shards, 0, meta)
        gone = int(rng.integers(2))
        rest = {name: view for name, view in views.items() if name != CAMERAS[gone]}
        got, whole = processor.inputs(rest, state, task), processor.inputs(views, state, task)
        assert got['image_mask'].tolist() == [n != gone for n in range(2)]
        seen, unseen = in_model_units(got['images'])[1 - gone], in_model_units(got['images'])[gone]
        assert np.all(unseen == -1)
        assert np.array_equal(seen, in_model_units(whole['images'])[1 - gone])
        for key in set(got) - {'images', 'image_mask'}:
            assert np.array_equal(got[key], whole[key]), key


def test_with_loss_images_differ_by_jpeg_alone(tmp_path, tokenizer, monkeypatch):
    """Smooth images of the model's size, as shards hold them in earnest."""
    ramp = np.linspace(0, 255, SIDE)[:, None, None] * np.linspace(0.3, 1, SIDE)[None, :, None]
    smooth = np.broadcast_to(ramp, (SIDE, SIDE, 3)).astype(np.uint8)
    monkeypatch.setattr(recordings, 'camera_image', lambda *which: smooth)
    source = recordings.record(tmp_path / 'source', (24, 20, 20))
    prepare(recordings.config(source), tmp_path / 'out')
    meta, statistics = open_shards(tmp_path / 'out').meta, next(trials('openpi'))[2]
    settings = {'batch_size': 1, 'tokenizer': tokenizer, 'norm_stats': statistics}
    want, _ = example(make_loader(open_shards(tmp_path / 'out').split('train'), **settings))
    processor = of_shards(ProcessorConfig(), statistics, tokenizer, meta, prompt_parts)
    got, _ = processor.views(dict.fromkeys(CAMERAS, smooth))
    assert got.dtype == want['images'].dtype == np.uint8
    assert 0 < np.abs(got.astype(int) - want['images']).max() <= 6  # grey levels


@pytest.mark.parametrize('number', range(TRIALS))
def test_actions_come_back_from_the_model_s_units(number, tokenizer):
    """`outputs` undoes what training does to actions, and agrees with the sampler on the device."""
    rng, policy, statistics = list(trials('openpi'))[number]
    processor = of_policy(policy, statistics, tokenizer, SIDE, prompt_parts)
    state, actions = (statistics[k].mean + rng.normal(0, 20, (4, 5, JOINTS)) for k in statistics)
    state = state[:, 0]
    relative = np.array(policy.relative_joints or (False,) * JOINTS)
    deltas = actions - np.where(relative, state, 0)[:, None]
    model = np.pad(normalize(deltas, statistics['actions']), [(0, 0), (0, 0), (0, WIDE - JOINTS)])
    got = processor.outputs(model, state)
    assert got.shape == actions.shape
    size = np.abs(deltas).max() + np.abs(statistics['actions'].span).max()
    np.testing.assert_allclose(got, actions, rtol=0, atol=1e-5 * size)
    assert np.array_equal(processor.outputs(model[2], state[2]), got[2]), 'with a batch or without'
    scaling = action_scaling(statistics, statistics, policy.relative_joints)
    normalised = np.stack([processor.normalized(one) for one in state])
    origin = action_origin(normalised.astype(np.float32), scaling)
    on_device = origin + unnormalize_actions(model.astype(np.float32), scaling)
    np.testing.assert_allclose(got, on_device, rtol=0, atol=1e-5 * (size + 200))


def test_a_policy_without_shards_has_its_own_views_and_both_originals_prompt(tokenizer):
    rng, policy, statistics = next(trials('openpi'))
    opened = {'prompt_state_dim': None, 'max_prompt_len': None, 'image_padding': BLACK}
    policy = dataclasses.replace(policy, **opened, cameras=('a',))
    processor = of_policy(policy, statistics, tokenizer, SIDE, prompt_parts)
    assert isinstance(processor, Processor) and processor.cameras == ('a',)
    image = frame(0, 0, recordings.CAMERAS[0], (48, 72))
    got = processor.inputs({'a': image}, rng.normal(size=JOINTS), 'lift_it ')
    assert got['prompt'].shape == got['prompt_mask'].shape == (200,)
    assert tokenizer.decode(got['text'][got['text_mask']]) == 'lift it'
    assert 'State: ' in tokenizer.decode(got['prompt'][got['prompt_mask']])
    assert np.array_equal(got['images'][0], resize_with_pad(image, SIDE, SIDE))
