"""A soak's verdict: each fault is found, and only where it is one."""

import copy
import multiprocessing

import numpy as np
import pytest

from benchmarks.serving_soak import Met, Seats, describe, faults, joined, summary

RIGHT = [np.full((4, 2), step + 1, np.float32) for step in range(3)]
SECONDS = 600


def soaked(off: float = 0.0, late: float = 10.0) -> dict:
    """What a soak without faults finds: an answer a second and kind, one of them off."""
    seats, kinds = Seats([RIGHT], 0), {}
    for kind in ('openpi', 'LeRobot'):
        met = Met(visits=3, killed=1)
        for n in range(SECONDS):
            took = 10.0 if n < SECONDS / 2 else late
            seats.take(met, RIGHT, float(n), took, n % 3, RIGHT[n % 3] + off * (n == 100))
        kinds[kind] = summary(met, 0.0, SECONDS)
    counts = {'answered': 2 * SECONDS + 1, 'refused': 9, 'failed': 0, 'batches': 40, 'of_one': 40}
    memory = {'memory_mib': [100, 101], 'growth': 0.01}
    return memory | {'robots': 1, 'counts': counts, 'kinds': kinds}


def test_a_soak_without_faults():
    found = soaked()
    assert faults(found) == []
    (*_, server) = describe(found | {'faults': []})
    assert 'one by one' in server and '+1.00 %' in server
    windows = found['kinds']['openpi']['windows']
    assert [one['from_s'] for one in windows] == [0, 100, 200, 300, 400, 500]
    assert {one['n'] for one in windows} == {100}


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'growth': 0.021}, 'memory grew by 2.10 %'),
        ({'growth': float('nan')}, 'memory grew'),
        ({'counts': {'failed': 1}}, '1 requests failed by a fault of the server'),
        ({'counts': {'answered': 2 * SECONDS + 3}}, 'answered 1203 times, robots got 1200'),
        ({'counts': {'answered': 2 * SECONDS - 1}}, 'answered 1199 times, robots got 1200'),
    ],
)
def test_what_the_server_says_is_held_against_it(change, sentence):
    found = copy.deepcopy(soaked())
    for key, value in change.items():
        found[key] = found[key] | value if isinstance(value, dict) else value
    (told,) = faults(found)
    assert sentence in told


def test_an_answer_is_right_to_the_bit_unless_it_was_computed_in_a_batch():
    found = soaked(off=1e-6)
    assert [text.partition(': ')[2][:15] for text in faults(found)] == ['answers are off'] * 2
    found['counts']['of_one'] -= 1
    assert faults(found) == []
    found = soaked(off=1e-2)
    found['counts']['of_one'] -= 1
    assert len(faults(found)) == 2


def test_a_p99_that_rises_is_told():
    assert faults(soaked(late=12.4)) == []
    assert faults(soaked(late=12.7)) == [
        f'{kind}: p99 went up by 27 %' for kind in soaked()['kinds']
    ]


def test_an_answer_of_another_shape_or_none_is_wrong():
    seats, met = Seats([RIGHT], 0), Met()
    seats.take(met, RIGHT, 0.0, 1.0, 0, RIGHT[0][:3])
    seats.take(met, RIGHT, 0.0, 1.0, 0, RIGHT[0] * np.nan)
    assert len(met.wrong) == 2 and met.off == 0
    both = joined([met, Met(lost=1, off=0.5)])
    assert (len(both.answers), both.wrong, both.lost, both.off) == (2, met.wrong, 1, 0.5)


def told(kind: str, answers) -> Met:
    """What a seat makes of one robot's answers."""
    seats, met = Seats([RIGHT, [-one for one in RIGHT]], 0), Met()
    receiving, sending = multiprocessing.Pipe(False)
    for step, actions in enumerate(answers):
        sending.send(('answer', 0.0, 1.0, step, actions))
    sending.close()
    seats._listen(kind, receiving, met)
    return met


def test_only_a_robot_of_lerobots_may_begin_the_next_episode_and_stays_in_it():
    """It has the address of one that was killed; openpi's connections are of nobody else."""
    second = [-one for one in RIGHT]
    assert told('LeRobot', RIGHT).off == told('LeRobot', second).off == 0
    assert told('LeRobot', [*second[:2], RIGHT[2]]).off == 2
    assert told('LeRobot', [RIGHT[0] * 5]).off == 4
    assert told('openpi', second).off == 2 and len(told('openpi', second).answers) == 3
