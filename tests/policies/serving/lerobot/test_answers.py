"""The answer is what LeRobot's client unpickles: the same numbers, dated."""

import pickletools

import numpy as np

from sigma_jax.policies.serving.lerobot.answers import write_chunk
from tests.policies.serving.lerobot.client import read_answer, recorded


def test_actions_arrive_bit_for_bit_and_dated():
    random = np.random.default_rng(0)
    actions = random.normal(0, 100, (50, 6)).astype(np.float32)
    actions[0] = [0.0, -0.0, 1e-45, 3.4e38, np.float32(0.1), -1]
    found = read_answer(write_chunk(actions, 1795855433.25, 2**31 - 10_000, 30))
    got = np.stack([one.action for one in found])
    assert got.dtype == np.float32 and got.tobytes() == actions.tobytes()
    assert [one.timestep for one in found] == list(range(2**31 - 10_000, 2**31 - 9_950))
    want = [1795855433.25 + n / 30 for n in range(50)]
    assert [one.timestamp for one in found] == want
    assert vars(found[0]).keys() == {'timestamp', 'timestep', 'action'}


def test_no_action_is_an_empty_list():
    assert read_answer(write_chunk(np.zeros((0, 6)), 1.0, 0, 30)) == []


def test_it_is_shorter_than_lerobot_s_and_says_the_same_kind_of_thing():
    """LeRobot puts an archive of its own around each action."""
    theirs = recorded()['answer']  # two actions of two numbers
    actions = np.array([[1.5, -2.0], [0.1, 3e-5]], np.float32)
    ours = write_chunk(actions, 100.0, 7, 30)
    assert len(ours) < len(theirs) / 2

    def built(data):
        return [op.name for op, *_ in pickletools.genops(data)].count('BUILD')

    assert built(ours) == built(theirs) == 2
    texts = {'timestamp', 'timestep', 'action'}
    for data in (ours, theirs):
        assert texts <= {argument for _, argument, _ in pickletools.genops(data)}
    one, two = read_answer(ours)
    assert (one.timestamp, one.timestep, two.timestamp, two.timestep) == (100.0, 7, 100 + 1 / 30, 8)
    assert two.action.tolist() == actions[1].tolist()
