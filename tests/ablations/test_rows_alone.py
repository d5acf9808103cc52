"""Rows side by side against the same rows alone, for 20 steps in float64."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'devices'), [(1, 1), (12, 2), (24, 1)])
def test_rows_side_by_side_are_the_rows_alone(count, devices):
    """12 rows x 2 seeds, one after the other, 12 at once on each of two devices, all at once;
    dropout on.
    """
    flags = os.environ.get('XLA_FLAGS', '') + f' --xla_force_host_platform_device_count={devices}'
    environment = os.environ | {'XLA_FLAGS': flags, 'JAX_ENABLE_X64': '1', 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-m', 'tests.rows_alone', str(count)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['devices'] == devices and found['members'] == 24
    assert found['moved'] > 1e-3 and found['different'] > 20
    assert found['difference'] < 1e-9
