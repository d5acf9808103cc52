"""Pooling and contrasts on errors small enough to be worked out by hand."""

import numpy as np
import pytest

from sigma_jax.evaluation.compare import contrasts
from sigma_jax.evaluation.compare.contrasts import PooledMethod
from sigma_jax.evaluation.metrics import ERRORS

EPISODE = np.asarray([3, 3, 7])


def method(*seeds):
    errors = [dict.fromkeys(ERRORS, np.asarray(values, float)) for values in seeds]
    return PooledMethod(errors, tuple(range(len(seeds))) if len(seeds) > 1 else ())


@pytest.fixture(scope='module')
def report():
    methods = {
        'pi05': method([2, 2, 4]),
        'sigma': method([1, 1, 2], [1, 2, 3]),
        'no_tau': method([2, 1, 2], [1, 1, 1]),
    }
    return contrasts.compare(methods, EPISODE, [('sigma', 'pi05'), ('sigma', 'no_tau')])


def test_errors_of_every_seed_and_episode_are_kept(report):
    kept = report['arms']['sigma']['by_episode']
    assert kept['episode'].tolist() == [3, 7] and kept['num_windows'].tolist() == [2, 1]
    assert kept['mse_vec'].tolist() == [[1.0, 2.0], [1.5, 3.0]]
    assert report['arms']['sigma']['mse_chk']['by_seed'].tolist() == [4 / 3, 2.0]
    assert report['arms']['sigma']['mse_chk']['value'] == pytest.approx(5 / 3)
    assert report['arms']['sigma']['seeds'] == [0, 1] and report['arms']['pi05']['seeds'] == []


def test_contrasts_are_ratios_of_pooled_means(report):
    against_base, against_ablation = report['contrasts']
    assert against_base['mse_trj']['value'] == pytest.approx(5 / 8 - 1)
    assert against_ablation['mse_trj']['value'] == pytest.approx(5 / 4 - 1)
    assert against_ablation['mse_trj']['low'] < 0.25 < against_ablation['mse_trj']['high']


def test_every_arm_meets_its_references():
    methods = ['hold', 'pi05', 'pi05_lora', 'pi05_lora_mean8', 'sigma', 'no_tau', 'no_film']
    found = contrasts.pairs(methods, ['pi05_lora'], ['no_tau', 'no_film'], 'sigma')
    assert {other for one, other in found if one == 'sigma'} == {
        'pi05',
        'pi05_lora',
        'no_tau',
        'no_film',
    }
    assert ('hold', 'pi05_lora') in found and ('pi05_lora', 'pi05') in found
    assert len(found) == len(set(found)) and all(one != other for one, other in found)
    assert contrasts.pairs(methods, [], ['no_tau'], None) == [
        (name, 'pi05') for name in methods if name != 'pi05'
    ]
