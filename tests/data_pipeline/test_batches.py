"""A place in the data is a number of batches: any count of worker processes goes on from any
other's.
"""

import functools
import itertools
import json

import grain
import numpy as np
import pytest

from sigma_jax.data.loader import loader
from sigma_jax.data.loader.batches import Batches, batches_taken
from sigma_jax.errors import UserError

RUNS, SIZE = 7, 3  # seven runs in batches of three: no epoch ends with a batch
WORKERS = range(4)
NO_THREADS = grain.ReadOptions(num_threads=0)


def scaled(numbers, rng):
    """Numbers with a draw that their place decides."""
    return numbers + rng.uniform()


def data(epochs=None):
    """Shuffled anew each epoch, random by place, in batches: as `make_loader` puts it together."""
    runs = grain.MapDataset.source(list(range(RUNS))).shuffle(seed=3).repeat(epochs)
    return runs.random_map(scaled, seed=5).batch(SIZE, drop_remainder=True)


def batches(workers=0, epochs=None):
    return Batches(data(epochs), functools.partial(loader._started, num_workers=workers))


def take(iterator, count):
    return [x.tolist() for x in itertools.islice(iterator, count)]


@pytest.fixture(scope='module')
def whole():
    """The first twelve batches, uninterrupted."""
    return take(iter(data().to_iter_dataset(NO_THREADS)), 12)


def of_grain(workers, taken):
    """Grain's state after so many batches; its processes get them in turn."""
    if not workers:
        return {'next_index': taken}
    states = [{'next_index': len(range(worker, taken, workers))} for worker in range(workers)]
    rest = {'next_index_in_datasets': workers, 'exhausted': [0] * workers, 'future_states': {}}
    indices = list(range(workers))
    return rest | {
        'next_index_in_cycle': taken % workers,
        'iterators_in_use_indices': indices,
        'iterators_in_use_states': states,
    }


@pytest.mark.parametrize('workers', WORKERS)
def test_the_states_of_grain_as_written_here_are_its_own(workers):
    running = iter(loader._started(data(), workers))
    try:
        assert running.get_state() == of_grain(workers, 0)
    finally:
        running.close()


@pytest.mark.parametrize(('before', 'after'), list(itertools.product(WORKERS, WORKERS)))
def test_every_count_of_workers_goes_on_from_every_other(before, after, whole):
    """At every place of three epochs; what `after` would start is not started, as `Batches` alone
    decides where.
    """
    asked = []

    def start(rest):
        asked.append(len(rest))
        return rest.to_iter_dataset(NO_THREADS)

    for taken in range(8):
        again = Batches(data(), start)
        again.set_state(json.loads(json.dumps(of_grain(before, taken))))
        place = again.get_state()
        assert place == {'next_index': taken} == of_grain(0, batches_taken(of_grain(after, taken)))
        assert take(again, 2) == whole[taken : taken + 2]
    assert np.diff(asked).tolist() == [-1] * 7


def test_processes_go_on_from_other_processes(whole):
    """Two, one of which is a batch ahead, then one; Grain's own state of two is read as well."""
    two = batches(2)
    assert take(two, 3) == whole[:3]
    ours, grains = two.get_state(), two._running.get_state()
    two.close()
    assert grains == of_grain(2, 3) and batches_taken(grains) == 3
    one = batches(1)
    for state in (ours, grains):
        one.set_state(state)
        assert take(one, 3) == whole[3:6]
    one.close()


@pytest.mark.slow
def test_all_sixteen_pairs_with_real_processes(whole):
    for before, taken in itertools.product(WORKERS, (1, 5)):
        first = batches(before)
        assert take(first, taken) == whole[:taken]
        states = first.get_state(), first._running.get_state()
        first.close()
        for after, state in itertools.product(WORKERS, states):
            again = batches(after)
            again.set_state(state)
            assert take(again, 5) == whole[taken : taken + 5], (before, after, taken, state)
            again.close()


def test_a_place_may_be_set_again_while_batches_are_taken(whole):
    """Back, forward, and to the end of a finite row, which then gives nothing more."""
    iterator = batches()
    take(iterator, 5)
    iterator.set_state({'next_index': 1})
    assert take(iterator, 2) == whole[1:3] and iterator.get_state() == {'next_index': 3}
    finite = batches(epochs=2)
    assert take(finite, 9) == whole[: 2 * RUNS // SIZE] and not take(finite, 1)
    finite.set_state({'next_index': 2 * RUNS // SIZE})
    assert not take(finite, 1)
    finite.set_state({'next_index': 2})
    assert take(finite, 9) == whole[2 : 2 * RUNS // SIZE]


@pytest.mark.parametrize(
    'state',
    [
        {},
        {'next_index': 'x'},
        {'next_index': -1},
        {'iterators_in_use_states': [{}]},
        {'workers_state': {}},
    ],
)
def test_what_is_no_place_is_refused(state):
    with pytest.raises(
        UserError,
        match=r'expected the place of a loader in its data '
        r'\(next_index\), got',
    ):
        batches().set_state(state)


def test_a_place_beyond_the_data_is_refused():
    with pytest.raises(
        UserError,
        match=r'expected a place within the 2 batches of the data, got batch 3; '
        r'.*batch_size',
    ):
        batches(epochs=1).set_state({'next_index': 3})
    last = batches(epochs=1)
    last.set_state({'next_index': 1})
    np.testing.assert_array_equal(take(last, 1), take(batches(epochs=1), 2)[1:])
