"""serve.py with LeRobot's clients beside openpi's: one policy, two ports, one end."""

import signal

import numpy as np
import pytest

import sigma_jax as sj
from clients.sigma_client import Client
from sigma_jax.api.serving import ServingConfig, lerobot_settings, openpi_settings
from sigma_jax.policies.protocol import PolicySpec
from sigma_jax.policies.serving.openpi.keys import parse_keys
from sigma_jax.processing.spec import ProcessorConfig
from tests.policies.acting import TOKENIZER
from tests.policies.serving.lerobot.client import (
    JOINTS,
    Robot,
    in_policy_s_words,
    readings,
    seen,
)
from tests.test_serve import line_with, started

pytestmark = pytest.mark.usefixtures('in_time')
SPEC = PolicySpec((), 6, 6, 16, 16, ProcessorConfig())


def test_both_kinds_of_clients_are_served_at_once(small_run, tmp_path):
    pytest.importorskip('grpc')
    options = [f'--policy={small_run.base}', '--lerobot_port=0', '--no_warm_up']
    options += [f'--lerobot_joints={",".join(JOINTS)}', '--max_batch=2']
    with started(*options, f'--compilation_cache={tmp_path / "programs"}') as process:
        uri = line_with(process, 'serving at ws').split()[-1]
        robot = Robot(int(line_with(process, 'serving LeRobot at').rpartition(':')[2]))
        robot.send(seen(0))  # known by its joints
        chunk = np.stack([one.action for one in robot.actions(timeout=120)])
        other = Client(uri).infer(in_policy_s_words(readings(0)))['actions']
        robot.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    policy = sj.load_policy(small_run.base, tokenizer=TOKENIZER)
    want = policy.infer(in_policy_s_words(readings(0)))['actions']
    np.testing.assert_allclose(chunk, want, rtol=1e-4, atol=1e-3)
    assert np.array_equal(chunk, other)


def test_settings_are_shared_with_openpi_s_clients(tmp_path):
    key = tmp_path / 'key.txt'
    key.write_text('secret\n')
    config = ServingConfig(
        host='localhost',
        lerobot_port=8080,
        lerobot_joints=' a.pos, b.pos,',
        api_key_file=str(key),
        max_message_mib=2.5,
        clients=3,
        rate=7.0,
        idle_s=9.0,
        tls_certificate='c',
        tls_key='k',
    )
    found = lerobot_settings(config, openpi_settings(config, parse_keys('lerobot', SPEC)))
    assert (found.host, found.port, found.key) == ('localhost', 8080, 'secret')
    assert (found.limit, found.clients, found.rate, found.idle_s) == (5 << 19, 3, 7.0, 9.0)
    assert (found.certificate, found.private_key) == ('c', 'k')
    assert found.joints == ('a.pos', 'b.pos')
    usual = ServingConfig()
    shared = openpi_settings(usual, parse_keys('lerobot', SPEC))
    assert lerobot_settings(usual, shared).joints == () and usual.lerobot_port == -1
