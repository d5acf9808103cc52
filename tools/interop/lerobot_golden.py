"""Records what LeRobot's own RobotClient puts on the wire, for tests/data/lerobot_client.zip.

    ENV/bin/python tools/interop/lerobot_golden.py OUT.zip

Runs in an environment with LeRobot 0.6.1 and its extra `async`; needs nothing of this package. A
server that only keeps bytes stands where the policy would. Entries: the messages of each call as
they came, the observation pickled with protocol 5 too, LeRobot's own pickle of two actions, and
what all of them mean, about.json.
"""

import json
import pickle
import sys
import threading
import zipfile
from concurrent import futures

import grpc
import lerobot
import lerobot_robot
import numpy as np
import torch
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.helpers import TimedAction, TimedObservation
from lerobot.async_inference.robot_client import RobotClient

SERVICE = 'transport.AsyncInference'


def listen(kept):
    """A server that keeps the bytes of all calls, and its port."""

    def one(name):
        def call(request, context):
            kept.setdefault(name, []).append([request])
            return b''

        return grpc.unary_unary_rpc_method_handler(call)

    def many(requests, context):
        kept.setdefault('SendObservations', []).append(list(requests))
        return b''

    methods = {name: one(name) for name in ('Ready', 'SendPolicyInstructions', 'GetActions')}
    methods['SendObservations'] = grpc.stream_unary_rpc_method_handler(many)
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port('127.0.0.1:0')
    server.start()
    return server, port


def record(port, robot):
    """One observation of a robot, sent by the client."""
    client = RobotClient(
        RobotClientConfig(
            policy_type='pi05',
            pretrained_name_or_path='lerobot/pi05_base',
            robot=robot,
            actions_per_chunk=50,
            server_address=f'127.0.0.1:{port}',
        )
    )
    assert client.start()
    threading.Thread(target=client.start_barrier.wait, daemon=True).start()
    raw = client.control_loop_observation('put the brick into the box')
    client.channel.close()
    return raw


def main():
    """Entry point."""
    kept: dict[str, list] = {}
    server, port = listen(kept)
    small = lerobot_robot.NoRobotConfig(height=4, width=6)
    raw = record(port, small)
    record(port, lerobot_robot.NoRobotConfig(height=1200, width=1000, blank=True))
    server.stop(0)
    seen = TimedObservation(12.5, 7, dict(raw), must_go=True)
    seen.observation['force'] = np.float32(0.25)
    seen.observation['depth'] = np.arange(12, dtype=np.uint16).reshape(4, 3).T
    rows = [torch.tensor([1.5, -2.0]), torch.tensor([0.1, 3e-5])]
    actions = [TimedAction(100.0 + n / 30, 7 + n, row) for n, row in enumerate(rows)]
    about = {
        'lerobot': lerobot.__version__,
        'python': sys.version.split()[0],
        'numpy': np.__version__,
        'observation': {k: x.tolist() if hasattr(x, 'tolist') else x for k, x in raw.items()},
        'force': 0.25,
        'depth': seen.observation['depth'].tolist(),
    }
    with zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED) as out:
        for name, calls in kept.items():
            for n, call in enumerate(calls):
                for part, message in enumerate(call):
                    out.writestr(f'{name}/{n}/{part}', message)
        for protocol in (3, 4, 5):
            out.writestr(f'pickle/{protocol}', pickle.dumps(seen, protocol))
        out.writestr('answer', pickle.dumps(actions))
        out.writestr('about.json', json.dumps(about))


if __name__ == '__main__':
    main()
