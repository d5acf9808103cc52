"""A robot that is none, and LeRobot's own RobotClient that carries out a policy's actions on it.

    ENV/bin/python tools/interop/lerobot_robot.py --address=localhost:8080 --out=run.npz

Runs in an environment with LeRobot 0.6.1 and its extra `async`. The client is not changed; what it
sends and gets is copied where it hands it to gRPC. The file has for each chunk the observation that
it answers, as the robot gave it, and the actions as the client unpickled them.
"""

import argparse
import dataclasses
import os
import pickle
import tempfile
import threading
import time

import grpc
import numpy as np

os.chdir(tempfile.mkdtemp())  # the import makes a folder logs/ where one stands

from lerobot.async_inference.configs import RobotClientConfig  # noqa: E402
from lerobot.async_inference.robot_client import RobotClient  # noqa: E402
from lerobot.robots import Robot, RobotConfig  # noqa: E402
from lerobot.transport import services_pb2  # noqa: E402

JOINTS = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper')


@RobotConfig.register_subclass('no_robot')
@dataclasses.dataclass(kw_only=True)
class NoRobotConfig(RobotConfig):
    """Of six joints that swing by themselves, and cameras that see noise."""

    cameras: dict = dataclasses.field(default_factory=dict)
    views: tuple = ('up', 'side')
    height: int = 96
    width: int = 128
    seed: int = 0
    blank: bool = False


class NoRobot(Robot):
    """Gives observations and takes actions; nothing moves."""

    config_class = NoRobotConfig
    name = 'no_robot'

    def __init__(self, config):
        super().__init__(config)
        self.config, self.count, self.taken = config, 0, []
        self.random = np.random.default_rng(config.seed)

    @property
    def action_features(self):
        return {f'{name}.pos': float for name in JOINTS}

    @property
    def observation_features(self):
        shape = (self.config.height, self.config.width, 3)
        return self.action_features | dict.fromkeys(self.config.views, shape)

    is_connected = property(lambda self: True)
    is_calibrated = property(lambda self: True)

    def connect(self, calibrate=True): ...

    def calibrate(self): ...

    def configure(self): ...

    def disconnect(self): ...

    def get_observation(self):
        self.count += 1
        swing: list = [20 * np.sin(0.4 * self.count + n) for n in range(len(JOINTS))]
        seen: dict = {f'{name}.pos': float(x) for name, x in zip(JOINTS, swing, strict=True)}
        shape = (self.config.height, self.config.width, 3)
        for view in self.config.views:
            noise = self.random.integers(0, 256, shape, np.uint8)
            seen[view] = np.zeros(shape, np.uint8) if self.config.blank else noise
        return seen

    def send_action(self, action):
        self.taken.append(action)
        return action


class Copied:
    """A client's stub: what goes through it is kept, and left as it is."""

    def __init__(self, stub, chunks, done):
        self.stub, self.wanted, self.done = stub, chunks, done
        self.Ready, self.SendPolicyInstructions = stub.Ready, stub.SendPolicyInstructions
        self.seen, self.answered, self.waits, self.errors = {}, [], [], []

    def SendObservations(self, parts):
        parts = list(parts)
        seen = pickle.loads(b''.join(part.data for part in parts))
        self.seen[seen.timestamp] = seen
        try:
            return self.stub.SendObservations(iter(parts))
        except grpc.RpcError as error:
            self.errors.append(str(error.details()))
            raise

    def GetActions(self, request):
        start = time.perf_counter()
        try:
            answer = self.stub.GetActions(request)
        except grpc.RpcError as error:
            self.errors.append(str(error.details()))
            raise
        if answer.data and len(self.answered) < self.wanted:
            self.answered.append(pickle.loads(answer.data))
            self.waits.append(time.perf_counter() - start)
            print(f'chunk {len(self.answered)}', flush=True)
        if len(self.answered) == self.wanted:
            self.done.set()
            return services_pb2.Actions()
        return answer


def drive(arguments):
    """Runs a client until it has its chunks; returns it and what was copied."""
    robot = NoRobotConfig(seed=arguments.seed, height=arguments.height, width=arguments.width)
    client = RobotClient(
        RobotClientConfig(
            policy_type='pi05',
            pretrained_name_or_path='lerobot/pi05_base',
            robot=robot,
            actions_per_chunk=arguments.actions,
            task=arguments.task,
            server_address=arguments.address,
            chunk_size_threshold=arguments.threshold,
            fps=arguments.fps,
        )
    )
    client.stub = copied = Copied(client.stub, arguments.chunks, client.shutdown_event)
    if not client.start():
        raise SystemExit('the client could not start')
    limit = threading.Timer(arguments.seconds, client.shutdown_event.set)
    limit.daemon = True
    limit.start()
    receiver = threading.Thread(target=client.receive_actions, daemon=True)
    receiver.start()
    client.control_loop(task=arguments.task)
    client.stop()
    receiver.join(10)
    return client, copied


def save(path, client, copied):
    """Writes observations and chunks, in the order of the answers."""
    pairs = [(copied.seen[chunk[0].timestamp], chunk) for chunk in copied.answered]
    raw = [seen.observation for seen, _ in pairs]
    frames = {f'image.{view}': [one[view] for one in raw] for view in client.robot.config.views}
    lengths = [len(chunk) for _, chunk in pairs]
    kept = [chunk[: min(lengths)] for _, chunk in pairs]
    arrays: dict = dict(
        state=[[one[f'{name}.pos'] for name in JOINTS] for one in raw],
        task=[one['task'] for one in raw],
        actions=[np.stack([timed.action.numpy() for timed in chunk]) for chunk in kept],
        timesteps=[[timed.timestep for timed in chunk] for chunk in kept],
        timestamps=[[timed.timestamp for timed in chunk] for chunk in kept],
        seen_timestep=[seen.timestep for seen, _ in pairs],
        lengths=lengths,
        waits=copied.waits,
        carried_out=len(client.robot.taken),
        sent=len(copied.seen),
        errors=copied.errors,
    )
    everything: dict = frames | arrays
    np.savez_compressed(path, **everything)


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('--address', required=True)
    add('--out', required=True, help='an .npz')
    add('--chunks', type=int, default=200)
    add('--actions', type=int, default=8, help='actions_per_chunk')
    add('--threshold', type=float, default=0.5, help='chunk_size_threshold')
    add('--fps', type=int, default=100)
    add('--height', type=int, default=96)
    add('--width', type=int, default=128)
    add('--seed', type=int, default=0)
    add('--seconds', type=float, default=300, help='at most')
    add('--task', default='put the brick into the box')
    arguments = parser.parse_args()
    client, copied = drive(arguments)
    save(arguments.out, client, copied)
    print(f'{len(copied.answered)} chunks of {len(copied.seen)} observations', flush=True)
    os._exit(0)  # gRPC's threads are not waited for


if __name__ == '__main__':
    main()
