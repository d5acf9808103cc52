"""LeRobot's robot client as far as the wire knows it: recorded bytes, and a stub that speaks."""

import contextlib
import functools
import io
import json
import pickle
import sys
import types
import zipfile
from typing import Any

import numpy as np

from sigma_jax.policies.serving.lerobot import wire
from sigma_jax.policies.serving.lerobot.service import SERVICE
from tests.golden import DATA

HELPERS = 'lerobot.async_inference.helpers'
JOINTS = tuple(
    f'{name}.pos'
    for name in ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll')
) + ('gripper.pos',)
TASK = 'lift the brick'


@functools.cache
def recorded() -> dict[str, bytes]:
    """What LeRobot 0.6.1 sent (tools/interop/lerobot_golden.py), by entry."""
    with zipfile.ZipFile(DATA / 'lerobot_client' / 'wire.zip') as file:
        return {name: file.read(name) for name in file.namelist()}


def about() -> dict:
    """What the recorded bytes mean."""
    return json.loads(recorded()['about.json'])


class Kept:
    """An object of LeRobot's as a pickle has it: a name and fields."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


def pickled(name: str, fields: dict, protocol: int = 4) -> bytes:
    """An object of LeRobot's helpers, pickled by Python itself."""
    kind = type(name, (Kept,), {'__module__': HELPERS})
    parts = HELPERS.split('.')
    modules = {'.'.join(parts[: n + 1]): types.ModuleType('.') for n in range(len(parts))}
    setattr(modules[HELPERS], name, kind)
    with with_modules(modules):
        return pickle.dumps(kind(**fields), protocol)


@contextlib.contextmanager
def with_modules(modules: dict):
    """Modules that are there for a while."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    yield
    for name, module in before.items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module


def setup(**changes) -> bytes:
    """A RemotePolicyConfig of a robot with two cameras."""
    image: dict[str, Any] = {
        'dtype': 'image',
        'shape': (28, 28, 3),
        'names': ['height', 'width', 'channels'],
    }
    image |= {'info': {'is_depth_map': False}}
    state = {'dtype': 'float32', 'shape': (6,), 'names': list(JOINTS)}
    features = {'observation.state': state}
    features |= {f'observation.images.{name}': image for name in ('up', 'side')}
    fields: dict[str, Any] = {'policy_type': 'pi05', 'pretrained_name_or_path': 'lerobot/pi05_base'}
    fields |= {'lerobot_features': features, 'actions_per_chunk': 50, 'device': 'cpu'}
    return pickled('RemotePolicyConfig', fields | {'rename_map': {}} | changes)


def readings(number: int = 0, **changes) -> dict:
    """What a robot sees; it has moved between two numbers."""
    random = np.random.default_rng(number)
    state = {name: float(x) for name, x in zip(JOINTS, random.uniform(-20, 20, 6), strict=True)}
    frames = {name: random.integers(0, 256, (28, 28, 3), np.uint8) for name in ('up', 'side')}
    return state | frames | {'task': TASK} | changes


def seen(number: int = 0, *, protocol: int = 4, **changes) -> bytes:
    """A TimedObservation."""
    fields = {'timestamp': 100.0 + number, 'timestep': number, 'observation': readings(number)}
    return pickled('TimedObservation', fields | {'must_go': False} | changes, protocol)


def in_policy_s_words(raw: dict) -> dict:
    """An observation of the robot as a policy takes it."""
    state = np.array([raw[name] for name in JOINTS], np.float32)
    frames = {f'observation.images.{name}': raw[name] for name in ('up', 'side')}
    return frames | {'observation.state': state, 'task': raw['task']}


class _Reader(pickle.Unpickler):
    """Reads an answer where neither LeRobot nor PyTorch is."""

    def find_class(self, module, name):
        if (module, name) == (HELPERS, 'TimedAction'):
            return Kept
        assert (module, name) == ('torch', 'tensor')
        return functools.partial(np.array, dtype=np.float32)


def read_answer(data: bytes) -> list[Kept]:
    """The TimedActions of an answer, their actions as numpy's."""
    return _Reader(io.BytesIO(data)).load()


class Robot:
    """A connection of its own to a server, and the four calls.

    The calls raise grpc.RpcError, as LeRobot's client meets it.
    """

    def __init__(self, port: int, credentials=None, **metadata):
        import grpc

        options = [('grpc.use_local_subchannel_pool', 1), ('grpc.enable_retries', 0)]
        address, self._metadata = f'localhost:{port}', tuple(metadata.items())
        self.channel = (
            grpc.secure_channel(address, credentials, options)
            if credentials
            else grpc.insecure_channel(address, options)
        )

    def call(self, name: str, request: bytes = b'', timeout: float = 30) -> bytes:
        """One call with one message."""
        call = self.channel.unary_unary(f'/{SERVICE}/{name}')
        return call(request, timeout=timeout, metadata=self._metadata)

    def start(self, **changes) -> None:
        """Says who it is, as RobotClient.start does."""
        self.call('Ready')
        self.call('SendPolicyInstructions', wire.write_data(setup(**changes)))

    def send(self, data: bytes) -> None:
        """Sends an observation in parts."""
        self.send_parts(wire.write_parts(data))

    def send_parts(self, parts) -> None:
        """Sends messages as they are."""
        call = self.channel.stream_unary(f'/{SERVICE}/SendObservations')
        call(iter(parts), timeout=30, metadata=self._metadata)

    def actions(self, timeout: float = 30) -> list[Kept]:
        """The next chunk; [] where there is none."""
        data = wire.read_data(self.call('GetActions', timeout=timeout))
        return read_answer(data) if data else []

    def close(self) -> None:
        """Goes away."""
        self.channel.close()
