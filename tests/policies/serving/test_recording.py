"""What came and went is a data set that LeRobot's readers, ours included, open."""

import errno
import os
import threading

import numpy as np
import pytest

from sigma_jax.data.sources import open_source
from sigma_jax.data.video.encode import VideoWriter
from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import ACTIONS, COMMANDS, IMAGES, STATE, TASK, PolicySpec
from sigma_jax.policies.serving import recording
from sigma_jax.policies.serving.recording import Recorder
from sigma_jax.processing.spec import ProcessorConfig
from tests.policies.acting import ManyRobots, observation
from tests.policies.serving.openpi.served import serving

SPEC = PolicySpec((), 6, 7, 16, 16, ProcessorConfig())


def request(seed, **changes):
    actions = np.random.default_rng(seed).normal(size=(16, 7)).astype(np.float32)
    return observation(seed, size=64) | changes, {ACTIONS: actions, COMMANDS: actions.clip(-1, 1)}


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
        for name in (ACTIONS, COMMANDS):
            assert np.array_equal(chunks[name], [answer[name] for _, answer in rows])
        assert (np.diff(chunks['time_s']) >= 0).all()
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def test_pictures_are_those_that_were_seen(tmp_path):
    """Smooth ones, which a video keeps; of odd size, channels first, and a size for each camera."""
    ramp = np.linspace(0, 255, 65).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (33, 1)), np.full((33, 65), 90, np.uint8)] * 2)[:3]
    wide, narrow = picture.transpose(1, 2, 0), picture.transpose(1, 2, 0)[:21, :48]
    recorder = Recorder(tmp_path / 'set', SPEC)
    episode = recorder.episode()
    for seed in range(3):
        seen, answer = request(seed)
        episode.add(seen | {IMAGES + 'up': picture, IMAGES + 'side': narrow}, answer)
    episode.end()
    recorder.close()
    found = open_source(tmp_path / 'set').read_episode(0)
    for camera, meant in (('up', wide[:32, :64]), ('side', narrow[:20])):
        (frame, *_) = found.frames(IMAGES + camera)
        assert frame.shape == meant.shape
        assert np.abs(frame.astype(int) - meant).mean() < 6


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
    other = recorder.episode()
    keep(recorder, good, range(2))
    keep(recorder, bad, range(2), **{IMAGES + 'up': np.zeros((32, 32, 3), np.uint8)})
    seen, answer = request(0)
    other.add({key: x for key, x in seen.items() if key != IMAGES + 'side'}, answer)
    for episode in (good, bad, other):
        episode.end()
    keep(recorder, good, range(3))
    good.end()
    recorder.close()
    found = open_source(tmp_path / 'set')
    assert [len(found.read_episode(n)) for n in found.episodes] == [2, 3]
    assert 'an episode of 2 requests is not recorded: expected up of shape' in caplog.text
    assert 'not recorded: expected frames of the cameras up, side, got 1, without' in caplog.text


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_the_record_and_no_answer(tmp_path, small_run, caplog, monkeypatch):
    policy = ManyRobots.load(small_run.base)
    recorder = Recorder(tmp_path / 'set', policy.spec)
    with serving(policy, recorder=recorder) as server, server.client() as client:
        got = []
        for _ in range(3):
            got += [client.ask(observation(n))['actions'] for n in range(2)]
            client.ask({'reset': True})
            recorder._thread.submit(lambda: None).result()  # written by now
            monkeypatch.setattr(VideoWriter, 'write', full_disk)
        server.stop()
    assert recorder.close() == tmp_path / 'set'
    for n, actions in enumerate(got):  # two a reset
        state = state if n % 2 else policy.initial_state(n // 2)
        (want,), (state,) = policy.infer_batch([observation(n % 2)], [state])
        assert np.array_equal(actions, want['actions'])
    found = open_source(tmp_path / 'set')
    assert np.array_equal(found.read_episode(0).actions, [actions[0] for actions in got[:2]])
    assert len(found.episodes) == 1
    told = [line.getMessage() for line in caplog.records if 'not recorded' in line.getMessage()]
    assert [text.partition(': ')[2][:10] for text in told] == ['[Errno 28]', 'one before']


def test_a_disk_that_stays_full_leaves_nothing_and_breaks_nothing(tmp_path, caplog, monkeypatch):
    recorder = Recorder(tmp_path / 'set', SPEC)
    keep(recorder, episode := recorder.episode(), range(2))
    episode.end()
    recorder._thread.submit(lambda: None).result()
    monkeypatch.setattr(VideoWriter, 'close', full_disk)
    assert recorder.close() is None and list(tmp_path.iterdir()) == []
    assert '1 recorded episodes are lost: [Errno 28]' in caplog.text


def test_a_disk_that_is_full_before_the_first_episode_is_told_once(tmp_path, caplog, monkeypatch):
    """What was begun goes; later episodes are left out without another try."""
    recorder = Recorder(tmp_path / 'set', SPEC)
    monkeypatch.setattr('sigma_jax.data.lerobot.writer.VideoWriter', full_disk)
    for _ in range(2):
        keep(recorder, episode := recorder.episode(), range(2))
        episode.end()
    assert recorder.close() is None and list(tmp_path.iterdir()) == []
    told = [line.getMessage() for line in caplog.records]
    assert sum('free some, and start the server again' in text for text in told) == 1
    assert sum('2 requests is not recorded' in text for text in told) == 2


def test_robots_that_are_faster_than_the_encoder_fill_no_memory(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(recording, 'MOST', 4 * 2 * 64 * 64 * 3)
    recorder = Recorder(tmp_path / 'set', SPEC)
    held = threading.Event()
    recorder._thread.submit(held.wait)
    for n in range(3):  # two of them fit
        keep(recorder, episode := recorder.episode(), range(2 * n, 2 * n + 2))
        episode.end()
    assert 'an episode of 2 requests is not recorded: robots are faster' in caplog.text
    held.set()
    recorder._thread.submit(lambda: None).result()
    keep(recorder, episode := recorder.episode(), range(9, 10))
    episode.end()
    recorder.close()
    found = open_source(tmp_path / 'set')
    assert [len(found.read_episode(n)) for n in found.episodes] == [2, 2, 1]


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
