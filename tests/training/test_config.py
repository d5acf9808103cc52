"""Settings of a run: there and back, from older files, and what makes no sense; a run by shapes."""

import dataclasses
import json
import pathlib

import jax
import pytest

from sigma_jax.cli import command as cli
from sigma_jax.errors import UserError
from sigma_jax.training.build import build
from sigma_jax.training.config import Grid, RunConfig, read_config
from sigma_jax.training.devices import Devices
from sigma_jax.training.run import Run
from sigma_jax.types import Ablation
from tests.small_run import flow_config

EXPERIMENTS = [
    file for file in sorted(pathlib.Path('configs').glob('*.py')) if 'c.steps' in file.read_text()
]
GRID = Grid((('full', Ablation()), ('fast', Ablation(ramp_speed=float('inf')))), (0, 3))


@pytest.mark.parametrize('file', EXPERIMENTS, ids=lambda path: path.stem)
def test_a_config_comes_back_from_json(file):
    config = RunConfig.from_dict(cli.load(str(file)))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.optimizer.total_steps == config.steps


def test_every_setting_of_the_file_is_in_it():
    """None is dropped on the way: each leaf of the file is found, changed, in what comes out."""
    settings = cli.load('configs/defaults.py')
    found = dict(cli.flatten(RunConfig.from_dict(settings).to_dict()))
    for name, value in cli.flatten(settings):
        assert found[name] == (list(value) if isinstance(value, tuple) else value), name


def test_rows_and_ramps_without_end_come_back():
    config = RunConfig(ablations=GRID, ablation=Ablation(tau=0.0, ramp_speed=float('inf')))
    plain = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert plain['ablation']['ramp_speed'] == 'inf' and plain['ablations']['order'][1] == 'fast'
    assert RunConfig.from_dict(plain) == config


def test_a_file_that_names_less_has_the_defaults():
    old = RunConfig.from_dict({'seed': 3, 'sigma': {'d_tau': 8}, 'optimizer': {'b1': 0.8}})
    sigma = dataclasses.replace(RunConfig().sigma, d_tau=8)
    assert old.seed == 3 and old.sigma == sigma and old.accumulate == 1
    assert old.optimizer.b1 == 0.8 and old.optimizer.total_steps == old.steps


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        ({'sede': 0}, r"config: expected some of .*, got unknown keys \['sede'\]"),
        (
            {'sigma': {'d_tua': 4}},
            r"config.sigma: expected some of .*, got unknown keys \['d_tua'\]",
        ),
        (
            {'model': {'widht': 4}},
            r"config.model: expected some of .*, got unknown keys \['widht'\]",
        ),
        ({'ablation': {'tau': 'off'}}, "ablation: expected gates that are numbers, got .*'off'"),
        ({'relative_joints': (1, 0)}, 'config.relative_joints: expected a row of True or False'),
        ({'log': {'every': 0}}, 'log.every: expected at least 1 step, got 0'),
        ({'checkpoint': {'keep': 0}}, 'checkpoint.keep: expected at least 1, got 0'),
    ],
)
def test_what_makes_no_sense(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        RunConfig.from_dict(settings)


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (None, 'expected a training folder at .*, got no config.json'),
        ('{"steps":', 'expected JSON in .*config.json, got .*; it is damaged'),
        ('[1]', 'expected the settings of a run in .*, got none of objective, base, shards'),
        ('{}', 'got none of objective, base, shards, seed, steps; name a folder that train.py'),
        ('{"objective": "sigma", "shards": "", "seed": 0, "steps": 1}', 'got none of base; name'),
    ],
)
def test_a_folder_that_no_training_has_written(tmp_path, text, sentence):
    """Never a run of defaults, around a base of random weights."""
    if text is not None:
        (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_config(tmp_path)


def test_an_objective_that_does_not_exist():
    with pytest.raises(UserError, match="expected 'sigma' or 'flow_matching', got 'gan'"):
        _ = RunConfig(objective='gan').kind


@pytest.mark.parametrize('kind', ['sigma', 'params'])
def test_a_run_by_shapes_is_the_run(small_run, kind):
    """Leaf by leaf: what learns, what stays frozen, and the batch, without a weight read."""
    settings = small_run.config() if kind == 'sigma' else flow_config(small_run.shards)
    config = RunConfig.from_dict(settings)
    plan = build(config)
    run = Run(config, Devices(jax.devices()[:1]))
    real = run.state.trainable, run.frozen, run.example
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), real)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(lambda: real)) == shapes
    planned = plan.trainable, plan.frozen, plan.batch
    planned = jax.tree.map(lambda x: (x.shape, x.dtype), planned)
    for name, one, other in zip(('trainable', 'frozen', 'batch'), planned, shapes, strict=True):
        one, other = (dict(jax.tree_util.tree_leaves_with_path(x)) for x in (one, other))
        assert one == other, name
