"""Evaluation from real shards to files, with a stand-in for the trained model whose errors are known."""

import json
import types

import numpy as np
import pytest
from rich.console import Console

import configs.data_so101 as data_config
from sigma_jax.adapter import from_dict
from sigma_jax.data.plan import DataConfig
from sigma_jax.data.prepare import prepare
from sigma_jax.data.records import Records
from sigma_jax.errors import UserError
from sigma_jax.evaluation import runner
from sigma_jax.policy import OURS
from sigma_jax.types import Ablation
from tests import handmade

DIGEST = 'of the base'


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """Shards of the golden LeRobot data, and two base samples a window: 1 above and 3 below the truth."""
    out = tmp_path_factory.mktemp('evaluation') / 'shards'
    settings = data_config.get_config().data.to_dict() | {'source': 'tests/data/lerobot/v3.0'}
    prepare(DataConfig.from_settings(settings), out)
    for split in runner.SPLITS:
        records = Records(out, split)
        truth = np.stack([records[i].actions for i in range(len(records))])
        np.savez(out / f'baselines-{split}.npz', base=np.stack([truth + 1, truth - 3], axis=1).astype(np.float32))
    (out / 'baselines.json').write_text(json.dumps({'base_digest': DIGEST, 'samples': 2, 'seed': 0}))
    return out


@pytest.fixture(scope='module')
def trained(shards):
    return types.SimpleNamespace(
        predict=handmade.run_windows,
        sigma_params={'w': np.ones(3)},
        parameter_counts={'sigma': 3},
        config={'shards': str(shards), 'tokenizer': 'assets/tokenizer/tokenizer.json'},
        provenance={'step': 7},
        sequence_length=2,
        gates=Ablation(),
        base=types.SimpleNamespace(digest=DIGEST, policy=OURS),
    )


def evaluate(trained, workdir, **settings):
    workdir.mkdir(exist_ok=True)
    request = runner.Request(workdir, **settings)
    return runner.run(request, Console(quiet=True), lambda *_: trained)


def test_known_errors_reach_the_files(trained, shards, tmp_path):
    report, out = evaluate(trained, tmp_path / 'run', out=tmp_path / 'new' / 'report')
    assert json.loads((out / 'sigma_eval_report.json').read_text()) == report
    arms = report['splits']['test']['arms']
    assert arms['pi05']['mse_trj']['value'] == pytest.approx(1.0, rel=1e-4)
    assert arms['pi05_mean2']['mse_trj']['value'] == pytest.approx(1.0, rel=1e-4)
    assert arms['sigma']['mse_trj']['value'] == pytest.approx(0.25, rel=1e-4)
    assert arms['pi05_bias']['mse_trj']['value'] == pytest.approx(0.0, abs=1e-6)
    assert report['num_samples'] == sum(len(Records(shards, split)) for split in runner.SPLITS)
    assert from_dict(json.loads((out / 'adapter.json').read_text())).max_scale == 1.25
    assert (out / 'report.html').read_text().startswith('<!doctype html>')


def test_hold_sees_the_raw_state(trained, shards, tmp_path):
    """The loader normalises states; the arm must undo exactly that."""
    report, _ = evaluate(trained, tmp_path / 'run', splits=('test',))
    records = Records(shards, 'test')
    windows = [records[i] for i in range(len(records))]
    expected = np.mean([np.mean((w.actions[0].astype(float) - w.state) ** 2) for w in windows])
    assert report['splits']['test']['arms']['hold']['mse_vec']['value'] == pytest.approx(expected, rel=1e-3)


def test_provenance_names_its_sources(trained, tmp_path):
    report, out = evaluate(trained, tmp_path / 'run', splits=('train', 'calibration'))
    facts = report['provenance']
    assert facts['test_reads'] == 0 and facts['step'] == 7
    assert facts['baselines'] == {'samples': 2, 'seed': 0, 'base_digest': DIGEST}
    assert len(facts['shards_digest']) == 64
    assert out == tmp_path / 'run'


def test_shards_of_another_base_are_refused(trained, tmp_path):
    other = types.SimpleNamespace(**vars(trained) | {'base': types.SimpleNamespace(digest='another')})
    with pytest.raises(UserError, match='expected baselines of the policy another'):
        evaluate(other, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'evaluations.jsonl').exists()
