"""How many members a device takes at a time."""

import pytest

from sigma_jax.ablations import setup
from sigma_jax.errors import UserError

PARTS = {'frozen base': 10, 'trainable leaves': 1, 'moments': 2, 'running average': 0, 'batch': 4}
PARTS |= {'gradients': 1, 'kept activations': 5, 'largest layer': 3, 'reserve': 1}  # 10 come and go with each


@pytest.mark.parametrize(('members', 'usable', 'expected'), [(6, 1096, 104), (6, 116, 6), (6, 66, 1), (1, 36, 1)])
def test_as_many_as_have_room(members, usable, expected):
    """14 for base and batch, 6 for each member's state, old and new, 10 for each that is computed."""
    found = setup.fitting(PARTS, members, usable)
    assert found == expected and 14 + 6 * members + 10 * found <= usable < 14 + 6 * members + 10 * (found + 1)


def test_without_room_for_one_it_says_so():
    with pytest.raises(UserError, match='states of 60 trainings and one step'):
        setup.fitting(PARTS, 60, 380)


def test_a_cpu_takes_one():
    assert setup.suits({}, 60) == 1
