"""Two devices against one, micro-batches against one batch: the same training, in float64 to
rounding.
"""

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
from sigma_jax.training.folder import RunFolder
from tests import moved_run

ROOT = pathlib.Path(__file__).parents[2]


def compared(objective):
    """What `tests/two_devices.py` prints, in a process with two virtual devices and 64-bit
    numbers.
    """
    return with_devices(2, 'tests.two_devices', objective, JAX_ENABLE_X64='1')


def with_devices(count, module, *arguments, **environment):
    """The last line, JSON, that a module prints in a process with `count` virtual devices."""
    flags = os.environ.get('XLA_FLAGS', '') + f' --xla_force_host_platform_device_count={count}'
    environment = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'} | environment
    command = [sys.executable, '-m', module, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def as_one(found):
    """After 20 steps: no trainable leaf, moment or metric differs, with half of the batch on each
    device.
    """
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


def test_a_training_goes_on_and_is_read_upon_any_number_of_devices(tmp_path):
    """1, 2 and 4 to 1, 2 and 4: evaluation and export read what was written, and all end with the
    same numbers.
    """
    found = {4: with_devices(4, 'tests.moved_run', tmp_path, 'write', 'go_on')}
    found[2] = with_devices(2, 'tests.moved_run', tmp_path, 'go_on')
    found[1] = with_devices(1, 'tests.moved_run', tmp_path, 'go_on')
    moved_run.train(tmp_path / 'one', 1, moved_run.WHOLE)
    step, whole = RunFolder(tmp_path / 'one').trainable()
    assert step == moved_run.WHOLE
    for after, of in found.items():
        assert set(of) == {'1', '2', '4'}
        for before, what in of.items():
            assert what['read'] == found[4][before]['read'] and what['read'][0] == moved_run.HALF, (
                before,
                after,
            )
            assert what['end'][0] == moved_run.WHOLE
            np.testing.assert_allclose(
                what['end'][1], whole['sigma']['w'], rtol=2e-6, err_msg=f'{before} to {after}'
            )
    assert not np.allclose(found[1]['1']['read'][1], whole['sigma']['w'], rtol=1e-3)


def test_batches_that_cannot_be_divided():
    two = Devices(jax.devices()[:1])
    two.count = 2
    two.check(8, 4)
    with pytest.raises(
        UserError,
        match=r'expected a multiple of 8 \(4 micro-batches on 2 '
        r'devices\), got 4',
    ):
        two.check(4, 4)
    with pytest.raises(UserError, match='accumulate: expected at least 1'):
        two.check(4, 0)


def test_one_device_leaves_arrays_as_they_are():
    batch = {'x': np.ones(3)}
    assert Devices(jax.devices()[:1]).shard_batch(batch) is batch
