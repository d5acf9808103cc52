"""The script on tiny trained folders, from the command line to the page."""

import json
import shutil
import sys

import numpy as np
import pytest

import evaluate
import sigma_jax as sj
from sigma_jax import trees
from sigma_jax.api.evaluation import request
from sigma_jax.convert.load_base import ModelConfig, open_base, read_weights
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.replay_shards import in_order
from sigma_jax.evaluation.report import schema
from sigma_jax.evaluation.request import Request
from sigma_jax.evaluation.stress import robustness
from sigma_jax.evaluation.stress.perturb import every_level
from sigma_jax.nn.quant import Quantised
from sigma_jax.policies.sampled_policy import stored_weights
from sigma_jax.training.build import build
from sigma_jax.training.config import RunConfig
from sigma_jax.training.materialise import store_base
from tests.small_run import SmallRun
from tests.trained_runs import make_rows


@pytest.fixture(scope='module')
def folder(small_run: SmallRun, tmp_path_factory):
    rows = tmp_path_factory.mktemp('comparison') / 'rows'
    make_rows(small_run, rows)
    return rows.parent


@pytest.fixture(scope='module')
def report(folder):
    with pytest.MonkeyPatch.context() as patch:
        words = [
            'evaluate.py',
            f'--workdir={folder}',
            '--stress',
            '--robustness',
            '--checks',
            '--splits=train,calibration',
        ]
        patch.setattr(sys, 'argv', words)
        patch.setattr(robustness, 'every_level', lambda: every_level()[-1:])
        evaluate.main()
    return json.loads((folder / 'sigma_eval_report.json').read_text())


def test_everything_asked_for_is_in_the_files(folder, report):
    schema.check_report(report)
    assert (folder / 'adapter.json').is_file()
    page = (folder / 'report.html').read_text()
    for text in (
        'Does telepathy help?',
        'Adapter under stress',
        'Robustness',
        'Parameters and compute',
    ):
        assert text in page
    assert len(report['robustness']['rows']) == 2
    assert report['provenance']['test_reads'] == 0
    assert (folder / 'rows' / 'sigma' / 'seed0' / 'evaluations.jsonl').is_file()


def test_rows_are_arms_and_seeds_are_pooled(report):
    compared = report['comparison']
    assert (
        compared['full'] == 'sigma'
        and compared['no_tau'] == 'no_tau'
        and compared['tuned'] == ['pi05_lora']
    )
    methods = compared['arms']
    assert (
        methods['sigma']['seeds'] == [0, 1]
        and methods['pi05_lora']['seeds'] == [0]
        and methods['pi05']['seeds'] == []
    )
    assert {
        'pi05_lora_mean8',
        'sigma+adapter',
        'sigma_tau_off',
        'pi05_mean2',
        'hold',
        'mean',
    } <= set(methods)
    one = report['splits']['calibration']['arms']
    for name in ('pi05', 'hold', 'pi05_bias'):
        assert methods[name]['mse_trj']['value'] == pytest.approx(one[name]['mse_trj']['value'])
    assert methods['sigma']['mse_trj']['by_seed'][0] == pytest.approx(
        one['sigma']['mse_trj']['value'], rel=1e-5
    )
    assert ('sigma', 'no_tau') in {(c['arm'], c['against']) for c in compared['contrasts']}


def test_costs_lie_beside_the_arms(folder, report):
    costs = report['comparison']['compute']
    assert (
        costs['sigma']['training_windows'] == 1 * 2 * 2
        and costs['pi05_lora']['training_windows'] == 1 * 2 * 1
    )
    assert (
        costs['sigma']['flops_in_all']
        == costs['sigma']['flops_own'] + costs['pi05']['flops_in_all']
    )
    assert 0 < costs['pi05_lora']['trainable_parameters'] < costs['sigma']['trainable_parameters']
    # gradients cost once to twice as much
    forward = costs['sigma']['training_windows'] * costs['sigma']['flops_own']
    config = json.loads((folder / 'rows/sigma/seed0/config.json').read_text())
    samples = open_shards(config['shards']).split('train').windows * costs['pi05']['flops_in_all']
    assert 2 * forward < costs['sigma']['flops_training'] - samples < 3 * forward
    assert costs['no_tau'] == costs['sigma'] and costs['pi05']['trainable_parameters'] is None


def test_gates_of_training_hold_in_evaluation(report):
    """The row trained without tau has the weights of Sigma's first seed: it must give what the
    switch gives there.
    """
    methods = report['comparison']['arms']
    for key in ERRORS:
        assert methods['no_tau'][key]['by_seed'][0] == methods['sigma_tau_off'][key]['by_seed'][0]
        assert methods['no_tau'][key]['by_seed'][0] != methods['sigma'][key]['by_seed'][0]


def test_untouched_lora_samples_as_the_base_does(report):
    """The first of its samples has the noise of the base's first."""
    methods = report['comparison']['arms']
    for key in ERRORS:
        assert methods['pi05_lora'][key]['value'] == pytest.approx(
            methods['pi05'][key]['value'], rel=1e-4
        )
        assert methods['pi05_lora_mean8'][key]['value'] != pytest.approx(
            methods['pi05'][key]['value'], rel=1e-4
        )


def test_base_sampled_again_is_what_lies_beside_the_shards(small_run):
    opened = read_weights(open_base(str(small_run.base), ModelConfig()))
    base = robustness.BasePolicy(open_shards(small_run.shards), opened)
    batches = base.batches(open_shards(small_run.shards).split('train'), 1)
    drawn, _, _ = in_order((batch, base.sample(batch)) for batch in batches)
    stored = open_shards(small_run.shards).split('train').base_actions()[:, 0]
    np.testing.assert_allclose(drawn, stored, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['stored', 'int8'])
def test_a_run_s_frozen_leaves_are_those_that_are_sampled(small_run, kind):
    quant = {'kind': kind, 'patterns': ('.*/mlp(_1)?/linear',)}
    config = RunConfig.from_dict(small_run.config(quant=quant))
    opened = read_weights(build(config).base)
    held = store_base(config, opened, build(config).objective)
    shards = open_shards(small_run.shards)
    weights = stored_weights(opened, config.quant, held)
    alone, shared = (robustness.BasePolicy(shards, opened, x) for x in (None, weights))
    batch = next(alone.batches(shards.split('train'), 1))
    equal = np.array_equal(alone.sample(batch), shared.sample(batch))
    assert equal == (kind == 'stored')
    frozen = trees.flatten(held, is_leaf=lambda x: isinstance(x, Quantised))
    used = trees.flatten(shared._sampler.weights, is_leaf=lambda x: isinstance(x, Quantised))
    assert len(frozen) < len(used)  # Sigma keeps no action expert
    assert all(used[path] is leaf for path, leaf in frozen.items())


def test_robustness_of_a_quantised_run_samples_its_base_everywhere(folder, report, tmp_path):
    """As the run stores it, on the clean windows too, so that a change is a perturbation's."""
    run = tmp_path / 'run'
    shutil.copytree(folder / 'rows' / 'sigma' / 'seed0', run)
    config = json.loads((run / 'config.json').read_text())
    config['quant'] = config['quant'] | {'kind': 'int8', 'patterns': ['.*/mlp(_1)?/linear']}
    (run / 'config.json').write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness, 'every_level', lambda: every_level()[-1:])
        found = sj.evaluate(run, robustness=True, splits=('calibration',)).report
    clean = found['robustness']['rows'][0]['arms']['pi05']['mse_trj']['value']
    stored = found['splits']['calibration']['arms']['pi05']['mse_trj']['value']
    assert clean != stored and clean == pytest.approx(stored, rel=0.1)
    before = report['robustness']['rows'][0]['arms']['pi05']['mse_trj']['value']
    assert before == report['splits']['calibration']['arms']['pi05']['mse_trj']['value']


def test_a_single_folder_is_evaluated_as_ever(folder, monkeypatch):
    alone = folder / 'rows' / 'sigma' / 'seed0'
    monkeypatch.setattr(sys, 'argv', ['evaluate.py', f'--workdir={alone}'])
    asked = request(**evaluate.settings(evaluate.parse()))
    assert asked == Request(alone), (
        'no rows, nothing beside what it always did, the report in its own folder'
    )
