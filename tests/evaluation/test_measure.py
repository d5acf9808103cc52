"""A tiny data set with known errors gives exactly the expected report."""

import json
import math

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.evaluation import measure
from sigma_jax.evaluation.measure import EvaluationConfig
from sigma_jax.evaluation.metrics import Thresholds
from sigma_jax.evaluation.replay import flatten, pad_windows, replay, reset_every
from sigma_jax.evaluation.runner import check_splits, count_test_reads
from tests import handmade

PARAMS = {'a': np.asarray([1.0, 3.0]), 'b': {'c': np.asarray([[-1.0, 1.0]])}}


def splits(names=('train', 'calibration', 'test')):
    return {
        name: replay([handmade.make_batch(name)], handmade.run_windows, sequence_length=2)
        for name in names
    }


@pytest.fixture(scope='module')
def report():
    return measure.evaluate(splits(), EvaluationConfig(), PARAMS, {'seed': 3}, ['pan', 'lift'])


def test_padding_is_dropped_and_windows_are_sorted():
    batch = handmade.make_batch('test')
    batch = {key: value[::-1] for key, value in batch.items()}
    windows = replay([batch], handmade.run_windows, 2)
    assert windows.episode.tolist() == [20, 20, 20, 21, 21]
    assert windows.frame.tolist() == [0, 4, 8, 0, 4]


def test_arms_have_their_known_errors(report):
    """Test episodes: three windows with the base 1 off, two with it 3 off; train: 1 off
    everywhere.
    """
    methods = report['splits']['test']['arms']
    base = (3 * 1 + 2 * 9) / 5
    assert methods['pi05']['mse_vec']['value'] == base
    assert methods['sigma']['mse_vec']['value'] == pytest.approx(base / 4)
    assert methods['pi05_bias']['mse_trj']['value'] == pytest.approx((3 * 0 + 2 * 4) / 5)
    assert methods['sigma_tau_off']['mse_chk']['value'] == base
    assert methods['hold']['mse_vec']['value'] == 4.0
    assert methods['hold']['mse_chk']['value'] == pytest.approx(
        (2.0**2 + (3.0**2 + 1.0**2) / 2) / 2
    )
    assert list(methods) == [
        'hold',
        'mean',
        'pi05',
        'pi05_bias',
        'sigma',
        'sigma+adapter',
        'sigma_reset',
        'sigma_tau_off',
        'sigma_tau_off+adapter',
    ]


def test_mean_arm_uses_train_windows(report):
    """Train frames are (0, 4, 8) and (0, 4), so the mean line starts at 3.2."""
    starts = np.asarray([0, 4, 8, 0, 4])
    assert report['splits']['test']['arms']['mean']['mse_vec']['value'] == pytest.approx(
        np.mean((starts - 3.2) ** 2)
    )


def test_change_is_relative_to_the_base_and_paired(report):
    change = report['splits']['test']['arms']['sigma']['mse_trj']['change']
    assert change == {'value': -0.75, 'low': -0.75, 'high': -0.75}
    assert report['splits']['test']['arms']['pi05']['mse_trj']['change']['value'] == 0.0


def test_errors_by_episode_are_kept(report):
    kept = report['splits']['test']['arms']['sigma']['by_episode']
    assert kept['episode'] == [20, 21]
    assert kept['num_windows'] == [3, 2]
    assert kept['mse_vec'] == [0.25, 2.25]


def test_errors_by_step(report):
    methods = report['splits']['test']['arms']
    assert methods['pi05']['by_step'] == [4.2] * 4
    assert methods['hold']['by_step'] == pytest.approx([4.0, 5.0, 8.0, 13.0])


def test_paper_keys_pool_all_windows(report):
    """Base errors of the 15 windows: train 5 x 1; calibration 3 x 1, 2 x 4; test 3 x 1, 2 x 9."""
    base = (5 * 1 + 3 * 1 + 2 * 4 + 3 * 1 + 2 * 9) / 15
    assert report['num_samples'] == 15 and report['num_batches'] == 4
    assert report['pi05_base']['avg_mse_vector'] == pytest.approx(base, rel=1e-6)
    assert report['sigma']['avg_mse_traj'] == pytest.approx(base / 4, rel=1e-6)
    assert report['hard_thresholds'] == {'vec': 0.1, 'chk': 0.2, 'trj': 0.2}
    assert report['sigma']['total_hard_samples'] == 15
    assert report['sigma']['avg_hard_mse_chunk'] == report['sigma']['avg_mse_chunk']
    assert report['sigma']['avg_semantic_text_alignment'] == pytest.approx(math.sqrt(0.5), rel=1e-6)
    norms = [5.0, 10.0, 15.0, 5.0, 10.0]
    assert report['sigma']['avg_tau_l2'] == report['pi05_base']['avg_tau_l2'] == np.mean(norms)


def test_thresholds_decide_success():
    config = EvaluationConfig(success=Thresholds(0.3, 0.3, 0.3), hard=Thresholds(1.0, 1.0, 1.0))
    result = measure.evaluate(splits(('test',)), config)
    assert result['splits']['test']['arms']['sigma']['success_rate'] == 0.6
    assert result['sigma']['hard_sample_fraction'] == 0.4
    assert result['sigma']['avg_hard_mse_vector'] == 2.25
    assert result['pi05_base']['success_rate'] == 0.0


def test_memory_reset_every_sequence_length(report):
    """tau grows with the windows since the last reset: 5, 10, 15 carried, 5, 10, 5 with resets
    every two.
    """
    methods = report['splits']['test']['arms']
    assert methods['sigma']['tau_l2'] == 9.0
    assert methods['sigma_reset']['tau_l2'] == 7.0
    reset = np.asarray([[True, False, False, True, False, False, False]])
    assert reset_every(reset, 2).tolist() == [[True, False, True, True, False, True, False]]


def test_adapter_is_fitted_on_calibration_only(report):
    """Half of the error repaired: the best scale is 2, the limit 1.25; calibration shows what is
    too far.
    """
    state = report['adapter']['state']
    assert state['max_scale'] == 1.25
    assert state['sigma_res'] == pytest.approx([math.sqrt((3 * 0.25 + 2 * 1.0) / 5)] * 2, rel=1e-5)
    other = splits()
    other['test'].actions += 100.0
    again = measure.evaluate(other, EvaluationConfig())
    assert again['adapter']['state'] == state


def test_adapter_falls_back_where_the_residual_is_larger_than_ever(report):
    """Episode 20 is like calibration and gets 1.25 of its residual; episode 21's residual is out of
    range.
    """
    recorded = report['adapter']['windows']['test']
    assert recorded['scale'][0] == 1.25
    assert 0 < recorded['scale'][3] < 0.4
    kept = report['splits']['test']['arms']['sigma+adapter']['by_episode']['mse_vec']
    assert kept[0] == pytest.approx((1 - 1.25 / 2) ** 2)
    assert kept[1] == pytest.approx((3 - recorded['scale'][3] * 1.5) ** 2, rel=1e-5)


def test_two_by_two(report):
    table = report['telepathy_by_adapter']['test']
    methods = report['splits']['test']['arms']
    assert table['telepathy_on']['adapter_off']['mse_vec'] == methods['sigma']['mse_vec']['value']
    assert (
        table['telepathy_on']['adapter_on']['mse_vec']
        == methods['sigma+adapter']['mse_vec']['value']
    )
    assert table['telepathy_off']['adapter_off']['mse_vec'] == methods['pi05']['mse_vec']['value']


def test_check_a_by_hand(report):
    expected = {'heads_tensors': 2, 'mean': 1.0, 'std': math.sqrt(2.0), 'rms': math.sqrt(3.0)}
    assert report['check_a']['sigma'] == pytest.approx(expected)
    assert report['check_a']['pi05_base'] == report['check_a']['sigma']


def test_check_b_rows_are_batches_of_four(report):
    rows = report['check_b']['pi05_base']
    assert [row['batch'] for row in rows] == [0, 1, 2, 3]
    assert [row['mse_vec'] for row in rows] == pytest.approx(
        [1.0, 1.0, (4 + 4 + 1 + 1) / 4, (1 + 9 + 9) / 3]
    )
    assert rows[0]['tau_l2'] == (5 + 10 + 15 + 5) / 4


def test_several_base_samples_add_an_arm():
    """Records are numbered in reverse, to show that samples follow the record and not the
    position.
    """
    batch = handmade.make_batch('test')
    truth = flatten(batch['actions'], 2)
    batch['record'] = np.arange(6)[::-1].reshape(2, 3)
    samples = np.stack([truth[::-1] + 1, truth[::-1] - 1], axis=1)
    windows = replay([batch], handmade.run_windows, 2, samples=samples)
    result = measure.evaluate({'test': windows}, EvaluationConfig())
    assert result['splits']['test']['arms']['pi05_mean2']['mse_trj']['value'] == 0.0


def test_padding_windows_to_a_common_length_changes_nothing(report):
    padded = {
        name: replay([pad_windows(handmade.make_batch(name), 7)], handmade.run_windows, 2)
        for name in handmade.OFFSETS
    }
    assert (
        measure.evaluate(padded, EvaluationConfig(), PARAMS, {'seed': 3}, ['pan', 'lift']) == report
    )


def test_report_is_strict_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert measure.jsonable({'x': np.float32('nan'), 'y': (np.int64(2), 1 / 3)}) == {
        'x': None,
        'y': [2, 0.3333333],
    }


def test_order_of_batches_changes_nothing(report):
    parts = [
        {key: value[i : i + 1] for key, value in handmade.make_batch('test').items()}
        for i in (1, 0)
    ]
    data = splits(('train', 'calibration')) | {'test': replay(parts, handmade.run_windows, 2)}
    again = measure.evaluate(data, EvaluationConfig(), PARAMS, {'seed': 3}, ['pan', 'lift'])
    assert again == report


def test_reads_of_test_are_counted(tmp_path):
    assert count_test_reads(tmp_path, ('train', 'calibration')) == 0
    assert count_test_reads(tmp_path, ('train', 'calibration', 'test')) == 1
    assert count_test_reads(tmp_path, ('test',)) == 2


@pytest.mark.parametrize('splits', [('validation',), ()])
def test_unknown_splits_are_refused(splits):
    with pytest.raises(UserError, match='expected some of train, calibration, test'):
        check_splits(splits)


def test_an_empty_split_is_an_error():
    batch = handmade.make_batch('test')
    with pytest.raises(UserError, match='got none'):
        replay([batch | {'mask': np.zeros_like(batch['mask'])}], handmade.run_windows, 2)
