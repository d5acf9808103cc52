"""What came and went is a data set that LeRobot's readers, ours included, open."""

import numpy as np
import pytest

from sigma_jax.data.sources import open_source
from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import ACTIONS, IMAGES, STATE, TASK, PolicySpec
from sigma_jax.policies.serving import recording
from sigma_jax.policies.serving.recording import Recorder
from sigma_jax.processing.spec import ProcessorConfig
from tests.policies.acting import ManyRobots, observation
from tests.policies.serving.openpi.served import serving

SPEC = PolicySpec((), 6, 7, 16, 16, ProcessorConfig())


def request(seed, **changes):
    actions = np.random.default_rng(seed).normal(size=(16, 7)).astype(np.float32)
    return observation(seed, size=64) | changes, {ACTIONS: actions}


def keep(recorder, episode, seeds, **changes):
    asked = [request(seed, **changes) for seed in seeds]
    for one in asked:
        episode.add(*one)
    return asked


def test_what_was_asked_and_answered_is_read_back(tmp_path):
    recorder = Recorder(tmp_path / 'set', SPEC, fps=5)
    first, second = recorder.episode(), recorder.episode()
    asked = keep(recorder, first, range(3))
    other = keep(recorder, second, range(10, 14), task='push')  # of a client beside it
    first.end()
    second.end()
    second.end()  # nothing came since
    assert not (tmp_path / 'set').exists() and recorder.close() == tmp_path / 'set'

    found = open_source(tmp_path / 'set')
    assert found.fps == 5 and len(found.episodes) == 2
    assert found.cameras == (IMAGES + 'up', IMAGES + 'side')
    for index, rows in enumerate((asked, other)):
        episode = found.read_episode(index)
        assert set(episode.tasks) == {rows[0][0][TASK]}
        assert np.array_equal(episode.state, [seen[STATE] for seen, _ in rows])
        assert np.array_equal(episode.actions, [answer[ACTIONS][0] for _, answer in rows])
        chunks = np.load(tmp_path / 'set' / 'chunks' / f'episode_{index:06d}.npz')
        assert np.array_equal(chunks['actions'], [answer[ACTIONS] for _, answer in rows])
        assert (np.diff(chunks['time_s']) >= 0).all()
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def test_pictures_are_those_that_were_seen(tmp_path):
    """Smooth ones, which a video keeps; of odd size and channels first, too."""
    ramp = np.linspace(0, 255, 65).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (33, 1)), np.full((33, 65), 90, np.uint8)] * 2)[:3]
    recorder = Recorder(tmp_path / 'set', SPEC)
    episode = recorder.episode()
    for seed in range(3):
        seen, answer = request(seed)
        episode.add(
            seen | {IMAGES + 'up': picture, IMAGES + 'side': picture.transpose(1, 2, 0)}, answer
        )
    episode.end()
    recorder.close()
    found = open_source(tmp_path / 'set').read_episode(0)
    for camera in ('up', 'side'):
        (frame, *_) = found.frames(IMAGES + camera)
        assert frame.shape == (32, 64, 3)
        assert np.abs(frame.astype(int) - picture.transpose(1, 2, 0)[:32, :64]).mean() < 6


def test_an_episode_ends_with_its_instruction_and_when_it_grows_long(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, 'LONGEST', 3)
    recorder = Recorder(tmp_path / 'set', SPEC)
    episode = recorder.episode()
    keep(recorder, episode, range(2))
    keep(recorder, episode, range(4), task='push')
    episode.end()
    recorder.close()
    found = open_source(tmp_path / 'set')
    lengths = [(len(found.read_episode(n)), found.read_episode(n).task) for n in range(3)]
    assert lengths == [(2, 'lift the brick'), (3, 'push'), (1, 'push')]


def test_an_episode_ends_before_its_pictures_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, 'LARGEST', 3 * 2 * 64 * 64 * 3)
    recorder = Recorder(tmp_path / 'set', SPEC)
    keep(recorder, episode := recorder.episode(), range(5))
    episode.end()
    recorder.close()
    found = open_source(tmp_path / 'set')
    assert [len(found.read_episode(n)) for n in range(2)] == [3, 2]


def test_an_episode_that_does_not_fit_is_left_out_and_told(tmp_path, caplog):
    recorder = Recorder(tmp_path / 'set', SPEC)
    good, bad = recorder.episode(), recorder.episode()
    keep(recorder, good, range(2))
    keep(recorder, bad, range(2), **{IMAGES + 'up': np.zeros((32, 32, 3), np.uint8)})
    for episode in (good, bad):
        episode.end()
    recorder.close()
    assert len(open_source(tmp_path / 'set').episodes) == 1
    assert 'an episode of 2 requests is not recorded' in caplog.text


def test_nothing_came_and_nothing_is_left(tmp_path):
    recorder = Recorder(tmp_path / 'set', SPEC)
    recorder.episode().end()
    assert recorder.close() is None and list(tmp_path.iterdir()) == []
    recorder = Recorder(tmp_path / 'set', SPEC)
    keep(recorder, episode := recorder.episode(), [0], **{STATE: np.zeros(9)})
    episode.end()
    assert recorder.close() is None and list(tmp_path.iterdir()) == []


def test_folders_and_rates_that_make_no_sense(tmp_path):
    for out, fps in ((tmp_path, 10), (tmp_path / 'set', 0)):
        with pytest.raises(UserError, match='expected a new folder to record to and a rate of 1'):
            Recorder(out, SPEC, fps)


def test_a_server_records_each_clients_episodes(tmp_path, small_run):
    policy = ManyRobots.load(small_run.base)
    recorder = Recorder(tmp_path / 'set', policy.spec)
    with serving(policy, recorder=recorder) as server:
        with server.client() as client:
            first = [client.ask(observation(n))['actions'] for n in range(2)]
            client.ask({'x': 1})  # wrong, so no row
            client.ask({'reset': True})
            client.ask(observation(2))
            client.ask(observation(3) | {'reset': True})
        server.stop()
    recorder.close()
    found = open_source(tmp_path / 'set')
    assert [len(found.read_episode(n)) for n in range(3)] == [2, 1, 1]
    assert np.array_equal(found.read_episode(0).actions, [actions[0] for actions in first])
    assert np.array_equal(found.read_episode(2).state[0], observation(3)[STATE])


def test_where_rerun_is_installed_an_episode_is_a_file_for_its_viewer(tmp_path):
    pytest.importorskip('rerun')
    recorder = Recorder(tmp_path / 'set', SPEC)
    keep(recorder, episode := recorder.episode(), range(3))
    episode.end()
    recorder.close()
    (file,) = (tmp_path / 'set' / 'rerun').iterdir()
    assert file.name == 'episode_000000.rrd' and file.read_bytes()[:4] == b'RRF2'
    assert file.stat().st_size > 3 * 2 * 1000  # pictures are in it
