"""The command line of convert_weights.py: conversions, merged adapters, proofs, and what it says
when it refuses.
"""

import json
import shutil
import sys

import numpy as np
import pytest

import convert_weights
from sigma_jax import trees
from sigma_jax.backbones import pi05
from sigma_jax.convert import checkpoint
from sigma_jax.convert.peft import adapter as peft
from tests import golden
from tests.merged import merge

ADAPTER = golden.DATA / 'peft_tiny'


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the script with these arguments: (status, what it printed, without line ends)."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['convert_weights.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            convert_weights.main()
        printed = capsys.readouterr()
        return ended.value.code, ' '.join((printed.out + printed.err).split())

    return run


def test_a_round_trip(command, tmp_path):
    source = golden.FIXTURE / 'openpi_pytorch.safetensors'
    status, printed = command(
        f'--checkpoint={source}', f'--out={tmp_path / "one"}', '--layout=lerobot'
    )
    assert status == 0 and '356,080 parameters' in printed and 'written as zeros' in printed
    status, printed = command(
        'convert', f'--checkpoint={tmp_path / "one"}', f'--out={tmp_path / "two"}'
    )
    assert status == 0 and 'lm_head equals embed_tokens' in printed
    assert trees.digest(checkpoint.load(tmp_path / 'two').params) == trees.digest(
        checkpoint.load(source).params
    )
    status, printed = command(f'--checkpoint={source}', f'--out={tmp_path / "two"}')
    assert status == 2 and 'error: expected' in printed and 'not to exist yet' in printed


def test_an_adapter_is_merged_in_float32(command, tmp_path):
    base, folder = (
        golden.FIXTURE / 'lerobot.safetensors',
        next(ADAPTER.glob('*/adapter_config.json')).parent,
    )
    arguments = (f'--checkpoint={base}', f'--adapter={folder}', f'--out={tmp_path / "merged"}')
    status, printed = command(*arguments, '--dtype=bfloat16')
    assert status == 2 and 'expected --dtype=float32 with --adapter, got bfloat16' in printed
    status, printed = command(*arguments)
    assert status == 0, printed
    loaded = checkpoint.load(base)
    adapter = peft.load(folder, loaded.config)
    want = trees.flatten(merge(loaded.params, adapter.factors, pi05.LAYOUTS, adapter.config.alpha))
    got, before = (
        trees.flatten(checkpoint.load(tmp_path / 'merged').params),
        trees.flatten(loaded.params),
    )
    assert all(np.abs(got[path] - x).max() < 1e-6 for path, x in want.items())
    assert 0 < sum(not np.array_equal(got[path], x) for path, x in before.items()) < len(before)
    status, printed = command(f'--checkpoint={folder}', f'--out={tmp_path / "three"}')
    assert status == 2 and 'is a PEFT adapter, which needs its base' in printed


def test_a_proof_and_its_status(command, tmp_path):
    source = golden.FIXTURE / 'lerobot.safetensors'
    status, printed = command('verify', f'--checkpoint={source}', f'--fixture={golden.FIXTURE}')
    assert status == 0 and '28 of 28 compared in float32, max rel <= 0.0001: equal' in printed
    shutil.copytree(
        golden.FIXTURE,
        tmp_path / 'fixture',
        ignore=shutil.ignore_patterns('*.safetensors', 'openpi_jax'),
    )
    outputs = dict(np.load(tmp_path / 'fixture/outputs.npz'))
    np.savez(tmp_path / 'fixture/outputs.npz', velocity=outputs['velocity'] * 1.001)
    status, printed = command(
        'verify', f'--checkpoint={source}', f'--fixture={tmp_path / "fixture"}'
    )
    assert status == 1 and 'DIFFERS' in printed and 'NOT equal' in printed


def test_statistics_from_elsewhere(command, tmp_path):
    source, stats = (
        golden.FIXTURE / 'lerobot.safetensors',
        golden.DATA.parents[1] / 'assets/pi05_tiny/norm_stats.json',
    )
    status, _ = command(f'--checkpoint={source}', f'--out={tmp_path / "out"}', f'--stats={stats}')
    written = json.loads((tmp_path / 'out/norm_stats.json').read_text())['norm_stats']
    assert (
        status == 0
        and written['actions']['q99']
        == json.loads(stats.read_text())['norm_stats']['actions']['q99']
    )
    status, printed = command(
        f'--checkpoint={source}', f'--out={tmp_path / "two"}', f'--stats={tmp_path / "none"}'
    )
    assert status == 2 and printed.startswith('error: ') and not (tmp_path / 'two').exists()


def test_help_and_unknown_flags(command):
    assert command('--help')[0] == 0 and 'PEFT' in command('export', '--help')[1]
    status, printed = command('verify', '--checkpoint=x')
    assert status == 2 and '--fixture' in printed
