"""How many members a device takes at a time."""

import pytest

from sigma_jax.ablations import setup
from sigma_jax.errors import UserError
from sigma_jax.training.config import RunConfig

PARTS = {'frozen base': 10, 'trainable leaves': 1, 'moments': 2, 'running average': 0, 'batch': 4}
# 10 come and go with each
PARTS |= {'gradients': 1, 'kept activations': 5, 'largest layer': 3, 'reserve': 1}


@pytest.mark.parametrize(
    ('members', 'usable', 'expected'),
    [(6, 1096, 52), (6, 110, 3), (6, 109, 2), (6, 80, 1), (1, 36, 1)],
)
def test_as_many_as_half_of_the_room_holds(members, usable, expected):
    """14 for base and batch, 6 for each member's state, old and new, 10 for each that is
    computed.
    """
    room = usable - 14 - 6 * members
    assert setup.fitting(PARTS, members, usable) == expected and room >= 10
    assert expected == 1 or 20 * expected <= room < 20 * (expected + 1)


def test_without_room_for_one_it_says_so():
    with pytest.raises(UserError, match='states of 60 trainings and one step'):
        setup.fitting(PARTS, 60, 380)


def test_a_cpu_takes_one():
    assert setup.suits(RunConfig.from_dict({}), 60) == 1
