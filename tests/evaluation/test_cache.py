"""What was measured before an interruption is read again; anything else is measured anew."""

import numpy as np
import pytest

from sigma_jax.evaluation.compare import cache
from sigma_jax.evaluation.compare.cache import Measured

ERRORS = {'mse_vec': np.arange(3.0), 'mse_trj': np.array([1.5, np.nan, 2.0])}
FOUND = Measured(
    {'sigma+adapter': (ERRORS, np.arange(4.0)), 'a b': (ERRORS, np.zeros(2))},
    {'steps': 3, 'own': None},
)


def ask(folder, made, key):
    def make():
        made.append(key)
        return FOUND

    return cache.once(folder, 'sigma-seed0', {'key': key}, make)


def test_the_same_is_measured_once_and_bitwise_kept(tmp_path):
    made: list = []
    ask(tmp_path, made, 1)
    found = ask(tmp_path, made, 1)
    assert made == [1] and found.cost == FOUND.cost and list(found.methods) == list(FOUND.methods)
    for name, (errors, by_step) in FOUND.methods.items():
        assert by_step.tobytes() == found.methods[name][1].tobytes()
        assert {k: x.tobytes() for k, x in errors.items()} == {
            k: x.tobytes() for k, x in found.methods[name][0].items()
        }


def test_another_key_and_a_cleared_folder_are_measured_anew(tmp_path):
    made: list = []
    for key in (1, 2):
        ask(tmp_path, made, key)
    cache.clear(tmp_path)
    ask(tmp_path, made, 2)
    assert made == [1, 2, 2]


@pytest.mark.parametrize('size', [0, 10, 300, -1])
def test_a_damaged_file_is_made_again(tmp_path, size):
    made: list = []
    ask(tmp_path, made, 1)
    file = tmp_path / cache.FOLDER / 'sigma-seed0.npz'
    file.write_bytes(file.read_bytes()[:size])
    assert ask(tmp_path, made, 1).cost == FOUND.cost and made == [1, 1]
