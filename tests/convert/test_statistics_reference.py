"""LeRobot computes what we do from the files that we write, and its own statistics are what we say
(`reference`).

LeRobot runs in an environment of its own: its interpreter is in REFERENCE_LEROBOT (0.6.1).
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from sigma_jax.convert import assets, dataset_stats
from sigma_jax.convert.lerobot import restate
from sigma_jax.convert.peft import adapter_assets
from sigma_jax.processing import quantiles
from sigma_jax.processing.normalize import compute_statistics, first_joints, normalize
from sigma_jax.processing.spec import LEROBOT
from tests import golden
from tests.convert.test_adapter_assets import RELATIVE, add_lerobots
from tests.convert.test_assets import edit, write
from tests.convert.test_dataset_stats import PICK, rows

pytestmark = pytest.mark.reference
POLICIES = golden.DATA / 'policies'
PROCESS = """
import sys, numpy as np, torch
import lerobot.policies.pi05.processor_pi05
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
for folder in sys.argv[1:]:
    raw = {key: torch.from_numpy(x) for key, x in np.load(folder + '/raw.npz').items()}
    before = PolicyProcessorPipeline.from_pretrained(
        folder, config_filename='policy_preprocessor.json')
    after = PolicyProcessorPipeline.from_pretrained(
        folder, config_filename='policy_postprocessor.json',
        to_transition=policy_action_to_transition, to_output=transition_to_policy_action)
    relative = [step for step in before.steps if hasattr(step, 'exclude_joints')]
    for step in after.steps:
        if hasattr(step, 'relative_step'):
            step.relative_step = relative[0]
    batch = before({'observation.state': raw['state'], 'action': raw['actions'], 'task': ['x']})
    back = after(batch['action'])
    state, actions = batch['observation.state'], batch['action']
    np.savez(folder + '/theirs.npz', state=state, actions=actions, back=back)
"""
STATISTICS = """
import sys, json, numpy as np
from lerobot.datasets import compute_stats
raw = dict(np.load(sys.argv[1] + '/rows.npz'))
features = {'action': {'shape': [6], 'names': ['a', 'b', 'c', 'd', 'e', 'gripper']}}
relative = compute_stats.compute_relative_action_stats(
    raw, features, 20, exclude_joints=['gripper'])
episodes = [raw['action'][raw['episode_index'] == i] for i in np.unique(raw['episode_index'])]
parts = [{'action': compute_stats.get_feature_stats(one, 0, False)} for one in episodes]
whole = compute_stats.aggregate_stats(parts)['action']
listed = lambda one: {key: np.asarray(x).tolist() for key, x in one.items()}
parts = [listed(p['action']) for p in parts]
print(json.dumps({'relative': listed(relative), 'whole': listed(whole), 'parts': parts}))
"""


def lerobot(code, *arguments):
    """Runs code inside LeRobot's environment; returns what it prints last."""
    environment = os.environ | {
        'HF_HUB_OFFLINE': '1',
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
    }
    command = [os.environ['REFERENCE_LEROBOT'], '-c', code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd='/')
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1:] or ['']


def wide_policy(folder):
    """LeRobot's relative policy with eight states and seven actions, the gripper absolute."""
    shutil.copytree(POLICIES / RELATIVE, folder)
    names = ['x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper']
    edit(
        folder / 'policy_preprocessor.json',
        lambda x: x['steps'][2]['config'].update(action_names=names),
    )
    rng = np.random.default_rng(3)
    drawn = {'state': rng.normal(1, 4, (99, 8)), 'actions': rng.normal(0, 2, (99, 7))}
    statistics = {name: compute_statistics(x) for name, x in drawn.items()}
    restate.restate(folder, {file.name: file for file in folder.iterdir()}, statistics)
    return assets.read(folder)


def policies(tmp_path):
    """{name: what is written for LeRobot}: adapters merged, statistics named, a state wider than
    the actions.
    """
    base, out = assets.read(POLICIES / RELATIVE), {}
    for own, factor in ((RELATIVE, 2.0), ('lerobot_mean_std', 1.5), ('lerobot_quantile10', 0.5)):
        adapter = tmp_path / f'adapter_{own}'
        shutil.copytree(golden.DATA / 'peft_tiny' / 'attention', adapter)
        add_lerobots(adapter, own, factor)
        out[f'adapter_{own}_merged'] = adapter_assets.merged(base, adapter)
    out['named'] = assets.read(POLICIES / RELATIVE, stats=PICK, horizon=20)
    out['wide'] = wide_policy(tmp_path / 'wide_source')
    flags = (True,) * 6 + (False,)
    assert out['wide'].policy.relative_joints == flags
    out['wide_anew'] = dataclasses.replace(out['wide'], files={})
    return out


def test_lerobots_processors_compute_what_we_do_from_every_file_that_we_write(tmp_path):
    written = policies(tmp_path)
    folders = {}
    for name, policy_assets in written.items():
        for layout, inner in (('lerobot', '.'), ('jax', 'lerobot')):
            if layout == 'jax' and not policy_assets.files:
                continue
            write(policy_assets, tmp_path / f'{name}_{layout}', layout)
            folder = tmp_path / f'{name}_{layout}' / inner
            # the tokenizer is a gated file, and no number depends on it
            for kind in ('pre', 'post'):
                edit(
                    folder / f'policy_{kind}processor.json',
                    lambda x: x.update(
                        steps=[s for s in x['steps'] if 'token' not in s['registry_name']]
                    ),
                )
            rng = np.random.default_rng(5)
            widths = [len(policy_assets.statistics[key].mean) for key in ('state', 'actions')]
            raw = {
                'state': rng.normal(3, 9, (1, widths[0])),
                'actions': rng.normal(3, 9, (1, 5, widths[1])),
            }
            np.savez(folder / 'raw.npz', **{key: x.astype(np.float32) for key, x in raw.items()})
            folders[folder] = policy_assets
    lerobot(PROCESS, *folders)
    for folder, policy_assets in folders.items():
        raw, theirs = (dict(np.load(folder / name)) for name in ('raw.npz', 'theirs.npz'))
        relative = policy_assets.policy.relative_joints or (False,) * raw['actions'].shape[-1]
        origin = np.where(relative, first_joints(raw['state'], len(relative)), 0)[:, None]
        moved = {key: one.std > 1e-6 for key, one in policy_assets.statistics.items()}
        want = {'state': raw['state'], 'actions': raw['actions'] - origin}
        for key, x in want.items():
            ours = normalize(x.astype(np.float32), policy_assets.statistics[key])
            np.testing.assert_allclose(
                theirs[key][..., moved[key]], ours[..., moved[key]], rtol=2e-6, atol=2e-6
            )
        np.testing.assert_allclose(theirs['back'], raw['actions'], atol=2e-4)


def test_statistics_of_relative_chunks_and_joined_quantiles_are_lerobots(tmp_path):
    data = rows(PICK)
    np.savez(tmp_path / 'rows.npz', **data)
    theirs = json.loads(lerobot(STATISTICS, tmp_path)[0])
    flags, notes = (True,) * 5 + (False,), []
    ours = dataset_stats.read(pathlib.Path(PICK), LEROBOT.scalings(), flags, 20, notes.append)[
        'actions'
    ]
    wide = np.array(theirs['relative']['max']) - theirs['relative']['min']
    # their sums are float32, their quantiles of 5000 bins
    for key, tolerance in (
        ('min', 1e-6),
        ('max', 1e-6),
        ('mean', 1e-4),
        ('std', 1e-4),
        ('q01', 2e-3),
        ('q99', 2e-3),
    ):
        off = np.abs(getattr(ours, key) - theirs['relative'][key]) / wide
        print(key, off.max())
        assert off.max() < tolerance, key
    assert quantiles.how_joined(theirs['whole'], theirs['parts']) == 'averages'
    share = quantiles.expected_outside(theirs['whole'], theirs['parts'])
    low, high = (np.array(theirs['whole'][key]) for key in ('q01', 'q99'))
    true = ((data['action'] < low) | (data['action'] > high)).mean(0)
    print('outside', true, 'by episodes', share)
    # an arm at rest has many equal values between two quantiles
    np.testing.assert_allclose(share, true, atol=0.1)
