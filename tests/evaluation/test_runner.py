"""Evaluation from real shards to files, with a stand-in for the trained model whose errors are
known.
"""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

import configs.data_so101 as data_config
from sigma_jax.backbones import kinds
from sigma_jax.data.shards import seen
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.evaluation import runner
from sigma_jax.evaluation.replay_shards import SPLITS
from sigma_jax.processing.spec import OURS
from sigma_jax.sigma.adapter import from_dict
from sigma_jax.training.config import RunConfig
from sigma_jax.types import Ablation
from tests import handmade
from tests.listener import Listener

DIGEST = 'of the base'


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """Shards of the golden LeRobot data, and two base samples a window: 1 above and 3 below the
    truth.
    """
    out = tmp_path_factory.mktemp('evaluation') / 'shards'
    settings = data_config.get_config().data.to_dict() | {'source': 'tests/data/lerobot/v3.0'}
    prepare(DataConfig.from_settings(settings), out)
    for split in SPLITS:
        records = open_shards(out).split(split).records()
        truth = np.stack([records[i].actions for i in range(len(records))])
        np.savez(
            out / f'baselines-{split}.npz',
            base=np.stack([truth + 1, truth - 3], axis=1).astype(np.float32),
        )
    (out / 'baselines.json').write_text(
        json.dumps({'base_digest': DIGEST, 'samples': 2, 'seed': 0})
    )
    return out


@pytest.fixture(scope='module')
def trained(shards):
    return types.SimpleNamespace(
        predict=handmade.run_windows,
        sigma_params={'w': np.ones(3)},
        parameter_counts={'sigma': 3},
        config=RunConfig(shards=str(shards)),
        shards=open_shards(shards),
        provenance={'step': 7},
        sequence_length=2,
        gates=Ablation(),
        base=types.SimpleNamespace(digest=DIGEST, policy=OURS, spec=kinds.USUAL),
        flops=lambda batch: None,
    )


def evaluate(trained, workdir, **settings):
    workdir.mkdir(exist_ok=True)
    request = runner.Request(workdir, **settings)
    return runner.evaluate_one(request, trained)


def test_known_errors_reach_the_files(trained, shards, tmp_path):
    report, out = evaluate(trained, tmp_path / 'run', out=tmp_path / 'new' / 'report')
    assert json.loads((out / 'sigma_eval_report.json').read_text()) == report
    methods = report['splits']['test']['arms']
    assert methods['pi05']['mse_trj']['value'] == pytest.approx(1.0, rel=1e-4)
    assert methods['pi05_mean2']['mse_trj']['value'] == pytest.approx(1.0, rel=1e-4)
    assert methods['sigma']['mse_trj']['value'] == pytest.approx(0.25, rel=1e-4)
    assert methods['pi05_bias']['mse_trj']['value'] == pytest.approx(0.0, abs=1e-6)
    assert report['num_samples'] == sum(
        len(open_shards(shards).split(split).records()) for split in SPLITS
    )
    assert from_dict(json.loads((out / 'adapter.json').read_text())).max_scale == 1.25
    assert (out / 'report.html').read_text().startswith('<!doctype html>')


def test_hold_sees_the_raw_state(trained, shards, tmp_path):
    """The loader normalises states; the method must undo exactly that."""
    report, _ = evaluate(trained, tmp_path / 'run', splits=('test',))
    records = open_shards(shards).split('test').records()
    windows = [records[i] for i in range(len(records))]
    expected = np.mean([np.mean((w.actions[0].astype(float) - w.state) ** 2) for w in windows])
    assert report['splits']['test']['arms']['hold']['mse_vec']['value'] == pytest.approx(
        expected, rel=1e-3
    )


def test_provenance_names_its_sources(trained, tmp_path):
    report, out = evaluate(trained, tmp_path / 'run', splits=('train', 'calibration'))
    facts = report['provenance']
    assert facts['test_reads'] == 0 and facts['step'] == 7
    assert facts['baselines'] == {'samples': 2, 'seed': 0, 'base_digest': DIGEST}
    assert len(facts['shards_digest']) == 64
    assert out == tmp_path / 'run'


def test_shards_of_another_base_are_refused(trained, tmp_path):
    other = types.SimpleNamespace(
        **vars(trained) | {'base': types.SimpleNamespace(digest='another')}
    )
    with pytest.raises(UserError, match='expected baselines of the policy another'):
        evaluate(other, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'evaluations.jsonl').exists()


LINE = json.dumps({'time': 'then', 'splits': ['train', 'test']}) + '\n'
LOGS = {
    'cut after the last line': (LINE + LINE[:20], 3),
    'cut, and gone on with': (LINE[:-3] + '\n' + LINE, 3),
    'no JSON': (LINE + 'what?\n', 3),
    'another JSON': (LINE + '[1]\nnull\n', 4),
    'a line without its end': (LINE[:-1], 2),
    'empty lines': (LINE + '\n\n', 2),
    'no text': (b'\xff\xfe\x00\n', 2),
}


@pytest.mark.parametrize('name', LOGS)
def test_a_damaged_log_of_evaluations_ends_none(name, trained, tmp_path):
    """Every line that may have been an evaluation of the test split counts; what was there
    stays.
    """
    text, reads = LOGS[name]
    log = tmp_path / 'evaluations.jsonl'
    log.write_bytes(before := text if isinstance(text, bytes) else text.encode())
    said = Listener()
    for more in range(2):
        request = runner.Request(tmp_path, splits=('test',))
        report, _ = runner.evaluate_one(request, trained, said)
        assert report['provenance']['test_reads'] == reads + more
    assert log.read_bytes().startswith(before) and json.loads(
        log.read_text(errors='replace').splitlines()[-1]
    )
    damaged = name not in ('a line without its end', 'empty lines')
    assert ('evaluations.jsonl: line' in '\n'.join(said.lines)) == damaged


def test_where_nothing_can_be_written_is_reported_before_the_work(trained, tmp_path):
    (tmp_path / 'evaluations.jsonl').mkdir()
    working = types.SimpleNamespace(**vars(trained) | {'predict': lambda *_: pytest.fail('worked')})
    with pytest.raises(UserError, match=r'expected to add a line to .*evaluations\.jsonl'):
        evaluate(working, tmp_path)
    (tmp_path / 'out').write_text('')
    with pytest.raises(UserError, match='--out: expected a folder to write to'):
        evaluate(working, tmp_path / 'run', out=tmp_path / 'out')


@pytest.mark.parametrize('place', ['/proc/x', '/proc/x/y', 'file', 'file/below'])
def test_a_folder_that_cannot_be_made_is_reported_before_the_work(place, trained, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--out: expected a folder to write to'):
        evaluate(trained, tmp_path / 'run', out=tmp_path / place)
    assert not (tmp_path / 'run' / 'evaluations.jsonl').exists()


def test_a_folder_that_is_looked_at_is_not_left_behind(tmp_path):
    runner.check_writable(tmp_path / 'a' / 'b')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('empty', 'advice'),
    [(('test',), '--splits=train,calibration'), (('train', 'test'), '--splits=calibration')],
)
def test_a_split_without_windows_is_reported_before_the_work(empty, advice, trained, tmp_path):
    windows = {**trained.shards.meta.windows, **dict.fromkeys(empty, 0)}
    less = dataclasses.replace(trained.shards.meta, windows=windows)
    other = dataclasses.replace(trained.shards, meta=less)
    trained = types.SimpleNamespace(**vars(trained) | {'shards': other})
    with pytest.raises(
        UserError, match=f'expected windows in split {empty[0]} of .* got none; .*{advice}'
    ):
        evaluate(trained, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'evaluations.jsonl').exists()
    splits = tuple(advice.partition('=')[2].split(','))
    assert set(evaluate(trained, tmp_path / 'run', splits=splits)[0]['splits']) == set(splits)


@pytest.mark.parametrize('split', ['calibration', 'test'])
def test_a_single_run_is_not_judged_by_what_it_learned_from(split, trained, shards, tmp_path):
    """Its own shards are elsewhere, cut otherwise and of other files; `episodes.json` says the same
    without them.
    """
    meta = json.loads((shards / 'meta.json').read_text())
    meta['splits']['train'], meta['source_digest'] = meta['splits'][split], 'of other files'
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'meta.json').write_text(json.dumps(meta))
    shutil.copy(shards / 'norm_stats.json', tmp_path / 'own')
    own = open_shards(tmp_path / 'own')
    config = dataclasses.replace(trained.config, shards=str(own.path))
    other = types.SimpleNamespace(**vars(trained) | {'config': config, 'shards': own})
    with pytest.raises(
        UserError, match=f'expected episodes of the {split} split that .*run has not learned from'
    ):
        evaluate(other, tmp_path / 'run', shards=shards)
    assert not (tmp_path / 'run' / 'evaluations.jsonl').exists()
    seen.note(tmp_path / 'run', own.meta)
    (tmp_path / 'own' / 'meta.json').unlink()
    with pytest.raises(UserError, match=f'expected episodes of the {split} split'):
        evaluate(other, tmp_path / 'run', shards=shards, splits=(split,))
    evaluate(other, tmp_path / 'run', shards=shards, splits=('train',))


def test_shards_without_a_record_are_evaluated_with_a_note(trained, shards, tmp_path):
    (tmp_path / 'own').mkdir()
    meta = json.loads((shards / 'meta.json').read_text()) | {'source_digest': 'of other files'}
    (tmp_path / 'own' / 'meta.json').write_text(
        json.dumps({k: v for k, v in meta.items() if k != 'episode_digests'})
    )
    shutil.copy(shards / 'norm_stats.json', tmp_path / 'own')
    own = open_shards(tmp_path / 'own')
    config = dataclasses.replace(trained.config, shards=str(own.path))
    other = types.SimpleNamespace(**vars(trained) | {'config': config, 'shards': own})
    said = Listener()
    request = runner.Request(tmp_path, shards=shards, splits=('test',))
    runner.evaluate_one(request, other, said)
    assert 'do not say what their episodes are' in '\n'.join(said.lines)
