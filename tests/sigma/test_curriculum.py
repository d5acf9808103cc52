"""The curriculum against the paper's Table 1: every printed weight, every recomposed loss."""

import csv
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.sigma import curriculum, losses

ROWS = [
    {key: float(value) for key, value in row.items()}
    for row in csv.DictReader(
        (Path(__file__).parents[1] / 'data' / 'table1.csv').read_text().splitlines()
    )
]
PRINTED = {'sem': 'w_sem', 'intent': 'w_int', 'tau': 'w_tau'}


def printed_weights(ramp_steps: int) -> list[bool]:
    """For each of the 42 printed weights: does the schedule round to it?"""
    schedules = curriculum.make_schedules(curriculum.CurriculumConfig(ramp_steps=ramp_steps))
    return [
        f'{float(curriculum.evaluate(schedules, int(row["step"]))[key]):.3f}'
        == f'{row[column]:.3f}'
        for row in ROWS
        for key, column in PRINTED.items()
    ]


def test_all_printed_weights_come_out_to_the_digit():
    agree = printed_weights(82)
    assert len(agree) == 42
    assert all(agree)


@pytest.mark.parametrize('ramp_steps', [81, 83])
def test_no_other_ramp_length_fits(ramp_steps):
    assert not all(printed_weights(ramp_steps))


def test_printed_losses_recompose():
    schedules = curriculum.make_schedules(curriculum.CurriculumConfig())
    for row in ROWS:
        terms = {
            'act': row['L_act'],
            'sem': row['L_sem'],
            'intent': row['L_int'],
            'tau': row['L_tau'],
        }
        terms = {key: jnp.asarray([value]) for key, value in terms.items()}
        total = losses.combine(
            terms, curriculum.evaluate(schedules, int(row['step'])), jnp.asarray([True])
        )
        assert abs(float(total) - row['loss']) <= 1e-3, row['step']


def test_speed_scales_the_step():
    schedules = curriculum.make_schedules(curriculum.CurriculumConfig())
    fast = curriculum.evaluate(schedules, 10, 2.0)
    assert all(
        np.isclose(fast[key], value) for key, value in curriculum.evaluate(schedules, 20).items()
    )
    half = curriculum.evaluate(schedules, 20, 0.5)
    assert all(
        np.isclose(half[key], value) for key, value in curriculum.evaluate(schedules, 10).items()
    )


@pytest.mark.parametrize('step', [0, 1, 200])
def test_infinite_speed_is_the_end_of_the_ramp_at_any_step(step):
    schedules = curriculum.make_schedules(curriculum.CurriculumConfig())
    weights = jax.jit(lambda s, speed: curriculum.evaluate(schedules, s, speed))(step, math.inf)
    assert {key: round(float(value), 4) for key, value in weights.items()} == {
        'act': 1.0,
        'sem': 1.0,
        'intent': 0.8,
        'tau': 0.03,
    }


def test_speeds_vectorise_in_one_trace():
    schedules = curriculum.make_schedules(curriculum.CurriculumConfig())
    rows = jax.vmap(lambda speed: curriculum.evaluate(schedules, 41, speed)['sem'])(
        jnp.asarray([0.5, 1.0, jnp.inf])
    )
    np.testing.assert_allclose(rows, [0.325, 0.55, 1.0], rtol=1e-5)


def test_columns_have_the_papers_names():
    weights = curriculum.evaluate(curriculum.make_schedules(curriculum.CurriculumConfig()), 0)
    assert set(curriculum.columns(weights)) == {'w_sem', 'w_int', 'w_tau'}
