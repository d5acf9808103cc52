"""What a policy does live is, to the bit, what an evaluation of recorded windows measures: kinds of
policies by where they are opened from. The base learned from another robot than the data's, so
that whoever takes one's units for the other's is found.
"""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import data_so101
from sigma_jax.api.policies import load_policy
from sigma_jax.convert import checkpoint
from sigma_jax.convert.load_base import ModelConfig, open_base, robot_statistics
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.evaluation.replay_shards import list_batches, whole_episodes
from sigma_jax.evaluation.trained_models import ModelCache, TrainedPolicy, TrainedSigma
from sigma_jax.policies import base_actions
from sigma_jax.policies.protocol import IMAGES, STATE, TASK
from sigma_jax.training import trainer
from sigma_jax.training.config import RunConfig
from sigma_jax.training.export import export_run
from sigma_jax.training.folder import RunFolder
from tests.small_run import SmallRun, flow_config
from tests.trained_runs import alone, make_rows, of_another_robot, save, shaken

TOKENIZER = 'assets/tokenizer/tokenizer.json'
AWAY = {'base': 'nowhere/base'}
MATRIX = [
    ('base', 'jax'),
    ('base', 'lerobot'),
    ('base', 'openpi-pytorch'),
    ('lora', 'run'),
    ('lora', 'run alone'),
    ('lora', 'export'),
    ('all_weights', 'run'),
    ('all_weights', 'run alone'),
    ('all_weights', 'export'),
    ('sigma', 'run'),
    ('sigma', 'run alone'),
    ('sigma', 'export'),
    ('sigma', 'export and base'),
]


@functools.cache
def many(root: pathlib.Path) -> SmallRun:
    """As `small_run`, on 100 windows and more of the embedded recording."""
    run = SmallRun(root / 'shards', root / 'flow')
    settings = data_so101.get_config().data.to_dict() | {
        'image_size': 28,
        'stride': 4,
        'train_episodes': (0, 1, 2),
        'calibration_episodes': (3,),
        'test_episodes': (),
    }
    prepare(DataConfig.from_settings(settings), run.shards)
    trainer.train(RunConfig.from_dict(flow_config(run.shards)), run.flow)
    return finished(run)


def few(small_run: SmallRun, root: pathlib.Path) -> SmallRun:
    """`small_run` around another base."""
    run = SmallRun(root / 'shards', root / 'flow')
    shutil.copytree(small_run.shards, run.shards, ignore=shutil.ignore_patterns('baselines*'))
    shutil.copytree(small_run.flow, run.flow)
    return finished(run)


def finished(run: SmallRun) -> SmallRun:
    of_another_robot(run.base)
    base_actions.write_baselines(open_shards(run.shards), run.baseline_config())
    return run


@pytest.fixture(scope='module', params=['few', pytest.param('many', marks=pytest.mark.slow)])
def run(request, small_run, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    return few(small_run, root) if request.param == 'few' else many(root)


def test_the_base_has_units_of_its_own(run):
    """Else nothing below would show which were taken."""
    base, meta = open_base(str(run.base), ModelConfig()), open_shards(run.shards).meta
    theirs, own = robot_statistics(base, meta), open_shards(run.shards).statistics
    for name in ('state', 'actions'):
        for part in ('mean', 'std', 'low', 'span'):
            a, b = (np.asarray(getattr(one[name], part)) for one in (theirs, own))
            assert np.abs(a - b).min() > 1e-3, (name, part)
    assert 0 < sum(base.policy.relative_joints) < len(meta.action_names)


@pytest.fixture(scope='module')
def rows(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('matrix') / 'rows'
    make_rows(run, folder)
    untouched = RunFolder(folder / 'pi05_lora' / 'seed0')
    factors = shaken(untouched.trainable()[1], 1)
    save(folder / 'lora' / 'seed0', json.loads(untouched.config_file.read_text()), factors)
    return folder


@pytest.fixture(scope='module')
def measured(run, rows):
    """{kind: (episode, frame) -> what evaluation has for the window}."""
    return functools.cache(functools.partial(_measured, run, rows))


def trained_in(run, rows, kind) -> pathlib.Path:
    return run.flow if kind == 'all_weights' else rows / kind / 'seed0'


def _measured(run, rows, kind) -> dict:
    split = open_shards(run.shards).split('train')
    if kind == 'base':
        index = split.records().index
        return dict(
            zip(zip(index.episode, index.frame, strict=True), split.base_actions(), strict=True)
        )
    folder = trained_in(run, rows, kind)
    if kind == 'sigma':
        trained = TrainedSigma(folder)
        batches = list_batches(trained, split, 2)
        pairs = ((batch, trained.predict(batch, trained.gates).actions) for batch in batches)
    else:
        fine = TrainedPolicy(folder, ModelCache(), samples=1, seed=0)
        batches = whole_episodes(
            split,
            2,
            fine.config.tokenizer,
            fine.statistics,
            fine.base.policy,
            prompt=fine.base.spec.prompt,
        )
        pairs = ((batch, fine.sample(batch)) for batch in batches)
    found = {}
    for batch, actions in pairs:
        for place in zip(*np.nonzero(batch['mask']), strict=True):
            key = int(batch['episode'][place]), int(batch['frame'][place])
            found[key] = jax.tree.map(lambda x, at=place: x[at], actions)
    return found


def opened(run, rows, kind, source, out):
    """The policy from its source; of an export nothing of the training can be found, of a run alone
    no shards.
    """
    if kind == 'base':
        folder = run.base
        if source != 'jax':
            loaded = checkpoint.load(run.base)
            folder = checkpoint.save(loaded, run.base, out / 'weights', source)
        meta = open_shards(run.shards).meta
        found = load_policy(folder, tokenizer=TOKENIZER, robot=meta)
        assert found.spec.processor.max_prompt_len == meta.max_prompt_len  # as its windows
        return found
    folder = trained_in(run, rows, kind)
    if source == 'run':
        return load_policy(folder)
    if source == 'run alone':
        drawn = kind == 'all_weights'  # it began without a base
        named = {} if drawn else {'base': shutil.copytree(run.base, out / 'base')}
        return load_policy(alone(folder, out / 'run', **({} if drawn else AWAY)), **named)
    if kind == 'all_weights':
        export_run(folder, out / 'export', merge=True)
        return load_policy(out / 'export', robot=open_shards(run.shards).meta)
    export_run(folder, out / 'export', with_base=source == 'export')
    record = out / 'export/export.json'
    told = json.loads(record.read_text())
    told['config'] |= {'shards': 'nowhere', 'base': 'nowhere', 'tokenizer': 'nowhere'}
    record.write_text(json.dumps(told))
    if source == 'export':
        return load_policy(out / 'export')
    shutil.copytree(run.base, out / 'base')
    return load_policy(out / 'export', base=out / 'base')


def windows(run) -> list[dict]:
    """As a robot would have seen them, episode by episode."""
    records = open_shards(run.shards).split('train').records()
    meta, index, seen = records.meta, records.index, []
    for n in range(len(index.episode)):
        frames = zip(meta.camera_names, records[n].images, strict=True)
        numbers = {'episode': int(index.episode[n]), 'frame': int(index.frame[n])}
        task = meta.tasks[index.text_id[n]]
        seen.append(
            {IMAGES + name: frame for name, frame in frames}
            | {STATE: records[n].state, TASK: task}
            | numbers
        )
    return seen


@pytest.mark.parametrize(('kind', 'source'), MATRIX)
def test_live_is_what_was_measured(run, rows, measured, tmp_path, kind, source):
    policy, want = opened(run, rows, kind, source, tmp_path), measured(kind)
    seen, episode = windows(run), None
    assert len(seen) == len(want) and len(seen) > (100 if 'many' in str(run.shards) else 10)
    for one in seen:
        if one['episode'] != episode:
            policy.reset()
            episode = one['episode']
        answer, expected = policy.infer(one), want[episode, one['frame']]
        if kind == 'sigma':
            branches = {name: getattr(expected, name) for name in answer['branches']}
            same = jax.tree.map(np.array_equal, answer['branches'], branches)
            assert len(branches) == 3 and all(same.values()), (one['frame'], same)
        else:
            got = answer['actions'][: expected.shape[1]]
            np.testing.assert_array_equal(got, expected[0], err_msg=f'{episode} {one["frame"]}')
