"""Two devices against one, micro-batches against one batch: the same training, in float64 to rounding."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.training.devices import Devices

ROOT = pathlib.Path(__file__).parents[2]


def compared(objective):
    """What `tests/two_devices.py` prints, in a process with two virtual devices and 64-bit numbers."""
    flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'
    environment = os.environ | {'XLA_FLAGS': flags, 'JAX_ENABLE_X64': '1', 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-m', 'tests.two_devices', objective]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def as_one(found):
    """After 20 steps: no trainable leaf, moment or metric differs, with half of the batch on each device."""
    assert found['devices'] == 2 and found['moved'] > 1e-3
    assert found['rows'] == [1, 2], 'rows of the batch on a device, with two of them and with one'
    return found['difference'] < 1e-9


def test_two_devices_train_as_one_and_micro_batches_as_a_batch():
    found = compared('flow_matching')
    assert as_one(found['flow_matching'])
    assert found['accumulated']['moved'] > 1e-3
    assert found['accumulated']['difference'] < 1e-12


@pytest.mark.slow
def test_two_devices_train_sigma_as_one():
    """Hard set and InfoNCE run over the windows of both."""
    assert as_one(compared('sigma')['sigma'])


def test_batches_that_cannot_be_divided():
    two = Devices(jax.devices()[:1])
    two.count = 2
    two.check(8, 4)
    with pytest.raises(UserError, match=r'expected a multiple of 8 \(4 micro-batches on 2 devices\), got 4'):
        two.check(4, 4)
    with pytest.raises(UserError, match='accumulate: expected at least 1'):
        two.check(4, 0)


def test_one_device_leaves_arrays_as_they_are():
    batch = {'x': np.ones(3)}
    assert Devices(jax.devices()[:1]).split(batch) is batch
