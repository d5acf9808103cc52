"""serve.py from outside: it listens, compiles, answers, records, and ends with a signal."""

import contextlib
import dataclasses
import io
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

import sigma_jax as sj
from clients.sigma_client import Client
from sigma_jax.api import serving_forecast
from sigma_jax.api.serving import ServingConfig, camera_names, openpi_settings, read_key
from sigma_jax.cli.tables import show_serving_forecast
from sigma_jax.convert.load_base import ModelConfig, open_base
from sigma_jax.errors import UserError
from sigma_jax.policies.protocol import PolicySpec
from sigma_jax.policies.serving import running
from sigma_jax.policies.serving.openpi.keys import parse_keys
from sigma_jax.processing.spec import ProcessorConfig
from tests.policies.acting import TOKENIZER, observation

pytestmark = pytest.mark.usefixtures('in_time')
ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / 'assets' / 'pi05_tiny'
SPEC = PolicySpec((), 6, 6, 16, 16, ProcessorConfig())
KEYS = 'observation.images.up=up,observation.images.side=side,observation.state=observation.state'


@contextlib.contextmanager
def started(*options):
    """The script for a while, with what it tells on its stderr."""
    command = [sys.executable, 'serve.py', '--port=0', f'--tokenizer={TOKENIZER}', *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process, word) -> str:
    """The next line with a word in it."""
    for line in iter(process.stderr.readline, ''):
        if word in line:
            return line.strip()
    raise AssertionError(f'no line with {word}')


def test_from_start_to_end(small_run, tmp_path):
    out = tmp_path / 'kept'
    options = [f'--policy={small_run.base}', f'--keys={KEYS},task=task', f'--record={out}']
    options += ['--max_batch=2', f'--compilation_cache={tmp_path / "programs"}']
    with started(*options) as process:
        uri = line_with(process, 'serving at').split()[-1]
        line_with(process, 'ready')
        client = Client(uri)
        got = [client.infer(observation(n))['actions'] for n in range(3)]
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == 0 and f'recorded to {out}' in rest
    policy = sj.load_policy(small_run.base, tokenizer=TOKENIZER)
    want = [policy.infer(observation(n))['actions'] for n in range(3)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
    kept = sj.open_dataset(out).read_episode(0)
    assert np.array_equal(kept.actions, [actions[0] for actions in got])
    assert any((tmp_path / 'programs').iterdir())


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'clients': 0}, 'expected clients from 1 to 1,000,000, got 0; choose one'),
        ({'max_message_mib': -1.0}, 'expected max_message_mib from 0.001 to .* got -1.0'),
        ({'idle_s': float('inf')}, 'expected idle_s .* got inf'),
        ({'drain_s': 0.0}, 'expected drain_s .* got 0.0'),
        ({'rate': -1.0}, 'expected rate from 0 to .*, got -1.0; 0 stands for no bound'),
        ({'rate': float('nan')}, 'expected rate .* got nan'),
        ({'max_wait_ms': float('nan')}, 'expected max_wait_ms .* got nan'),
        ({'max_batch': -1}, 'expected max_batch .* got -1; 0 stands for 8, or 1 on a CPU'),
        ({'port': 99999}, 'expected port from 0 to 65,535, got 99999; 0 takes a free one'),
        ({'port': -5}, 'expected port .* got -5'),
        ({'lerobot_port': 99999}, 'expected lerobot_port from -1 to 65,535, got 99999'),
        ({'record_fps': 0}, 'expected record_fps from 1 to 1,000, got 0'),
        ({'compilation_cache': '/proc/x'}, 'expected compilation_cache where files can be written'),
        ({'record': '/proc/x/set'}, 'expected record where files can be written, got /proc/x'),
        ({'host': '0.0.0.0'}, r'expected a key for what others reach \(0.0.0.0\), got none'),
        ({'tls_key': 'nowhere'}, 'expected a certificate and its key in PEM'),
        ({'api_key_file': 'nowhere'}, 'expected a key, one word in ASCII, in nowhere, got none'),
    ],
)
def test_settings_that_make_no_sense(change, sentence):
    with pytest.raises(UserError, match=sentence):
        ServingConfig(**change).check()


@pytest.mark.parametrize(
    ('change', 'renamed', 'sentence'),
    [
        ({'lerobot_joints': 'a, b'}, None, r'expected lerobot_joints as 6 names, got 2 \(a, b\)'),
        (
            {'default_prompt': 'word ' * 300},
            None,
            'expected a default_prompt that the policy can read, got: .* tokens',
        ),
        ({}, {'front': 'up'}, 'takes any by their order, got front; leave --cameras out'),
    ],
)
def test_settings_that_do_not_fit_the_policy(monkeypatch, change, renamed, sentence):
    monkeypatch.setattr(running, 'run', lambda *_, **__: pytest.fail('it serves'))
    policy = sj.load_policy(TINY, tokenizer=TOKENIZER, cameras=renamed)
    with pytest.raises(UserError, match=sentence):
        sj.serve(policy, ServingConfig(port=0, **change))


def test_a_seed_that_is_none():
    with started(f'--policy={TINY}', '--seed=-1') as process:
        told = process.communicate(timeout=60)[1]
        assert 'expected seed from 0 to 4294967295, got -1; choose one' in told
        assert process.returncode == 2


def test_settings_reach_the_server(tmp_path):
    (tmp_path / 'key').write_text('  secret-1\n')
    config = ServingConfig(api_key_file=str(tmp_path / 'key'), max_message_mib=0.5, port=9)
    found = openpi_settings(config, parse_keys('lerobot', SPEC))
    assert (found.key, found.bounds.bytes, found.port) == ('secret-1', 2**19, 9)
    assert read_key('') == ''


@pytest.mark.parametrize('text', ['', '\n', 'two words', 'schlüssel'])
def test_keys_that_are_none(tmp_path, text):
    (tmp_path / 'key').write_text(text)
    with pytest.raises(UserError, match='expected a key, one word in ASCII'):
        read_key(str(tmp_path / 'key'))


def test_cameras_that_clients_name_are_compiled_for():
    assert camera_names(parse_keys('lerobot', SPEC)) == []
    assert camera_names(parse_keys('libero', SPEC)) == ['base_0_rgb', 'left_wrist_0_rgb']


def test_a_signal_while_the_policy_is_read_ends_it_at_once():
    with started(f'--policy={TINY}') as process:
        line_with(process, 'reading')
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM


def test_a_signal_while_it_compiles_ends_it_in_time(small_run):
    """With what it still computes, in the bound."""
    options = f'--policy={small_run.base}', f'--keys={KEYS},task=task', '--drain_s=0.5'
    with started(*options) as process:
        line_with(process, 'serving at')
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert time.monotonic() - began < 20 and process.returncode == 0  # nobody had asked


# --- will it fit?


def test_weights_are_told_as_they_lie_there_and_a_batch_as_it_is(unread):
    found = sj.forecast_serving(TINY, card='l4', max_batch=4)
    stored = (TINY / 'model.safetensors').stat().st_size
    assert 0.9 * stored < found.parts['weights'] < stored
    pictures = 4 * 2 * open_base(str(TINY), ModelConfig()).config.image_size ** 2 * 3
    assert pictures < found.parts['a batch'] < pictures + 20_000
    assert found.fits and found.notes[-1] == '2 views, a prompt of 200 tokens, products in float32'


def test_more_at_once_take_more(unread, small_run):
    few, many = (
        sj.forecast_serving(small_run.base, card='h100', max_batch=n, views=1) for n in (1, 8)
    )
    assert few.parts['weights'] == many.parts['weights']
    whole = few.parts['while it is computed'], many.parts['while it is computed']
    assert whole[1] == 8 * whole[0] > 0
    assert few.least_ms == {1: many.least_ms[1]} and many.least_ms[8] >= many.least_ms[1]


def test_full_size_on_small_cards(unread, monkeypatch):
    """pi0.5 by its own sizes: 3.35 G parameters, float32 as openpi stores it, fit no 12 GB."""
    monkeypatch.setattr(serving_forecast, 'open_base', lambda _, model: named(open_base('', model)))
    monkeypatch.setitem(serving_forecast.CARDS, 'small', serving_forecast.CardSpec(12, 100, 500))
    small, large = (sj.forecast_serving('pi05', card=card) for card in ('small', 'h100'))
    assert 12.3 * 2**30 < small.parts['weights'] < 13.5 * 2**30
    assert not small.fits and large.fits
    assert (
        small.verdict.startswith('does not fit: about 1') and 'lower --max_batch' in small.verdict
    )
    assert large.verdict.startswith('fits: about 1') and '73.6 GiB that JAX may' in large.verdict
    assert 4 < large.least_ms[1] < 40 < large.least_ms[8]


def named(base):
    """A base of which statistics are known, as far as a forecast asks."""
    return dataclasses.replace(base, norm_stats={})


def test_a_training_is_told_by_its_base(unread, small_run):
    """Its config says which, before a checkpoint is read."""
    whole = sj.forecast_serving(small_run.base, card='l4')
    told = sj.forecast_serving(small_run.flow, card='l4')
    assert told.parts['weights'] == whole.parts['weights']
    assert 'what was learned beside the base is left out' in told.notes


def test_a_card_that_is_none(small_run):
    with pytest.raises(UserError, match="expected a card out of a100, h100, .*, got 'gtx'"):
        sj.forecast_serving(small_run.base, card='gtx')


def test_it_is_shown_as_a_table_and_sentences(unread, small_run):
    console = Console(file=io.StringIO(), width=80)
    show_serving_forecast(sj.forecast_serving(small_run.base, card='l4'), console)
    text = console.file.getvalue()
    for part in (
        'weights',
        'while it is computed',
        'at the least < 0.1 ms for 1, ',
        'fits: about 0.5',
    ):
        assert part in text
