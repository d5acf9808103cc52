#!/usr/bin/env bash
# lerobot 0.6.1: asynchronous inference: one answer that does not arrive stops the robot for good.
#
# One expects: a robot client that has no action left goes on asking, and the server, which is there and well, answers the next
#   observation.
# What happens: the client says `must_go` once, with the first observation after its queue ran dry, and again only when actions
#   have come. Its timestep stands still while nothing is carried out. The server notes a timestep as predicted before it
#   predicts it, and skips every later observation of it. So where that one answer is lost (a broken connection, an exception
#   in the policy, which becomes an empty answer), all observations from then on are skipped, 30 a second, without a word.
# Whom it hurts: whose network drops a packet at the wrong moment: the arm stands still until somebody restarts the client.
#
# Needs about 5 GB and some minutes: lerobot asks for PyTorch, whose Linux wheels bring CUDA.
# Usage: PYTHON=python3.12 findings/lerobot_async_stuck.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.12}" -m venv "$DIR/env"
"$DIR/env/bin/pip" -qq install --no-compile torch==2.11.0 torchvision==0.26.0 draccus==0.11.6 einops==0.8.2 grpcio==1.85.3 \
  gymnasium==1.4.0 matplotlib==3.11.2 numpy==2.2.6 protobuf==7.36.2 requests==2.34.2 safetensors==0.8.0 termcolor==3.3.0 \
  'lerobot[async]==0.6.1'
export HF_HOME="$DIR/cache" HF_HUB_OFFLINE=1

cat > "$DIR/show.py" <<'END'
import dataclasses
import logging
import platform
import sys
import threading
import time
from concurrent import futures
from importlib.metadata import version
from types import SimpleNamespace

import grpc
import numpy as np
import torch
from lerobot.async_inference.configs import PolicyServerConfig, RobotClientConfig
from lerobot.async_inference.policy_server import PolicyServer
from lerobot.async_inference.robot_client import RobotClient
from lerobot.robots import Robot, RobotConfig
from lerobot.transport import services_pb2, services_pb2_grpc

logging.disable(logging.CRITICAL)
SECONDS = 8


@RobotConfig.register_subclass('still')
@dataclasses.dataclass(kw_only=True)
class StillConfig(RobotConfig):
    pass


class Still(Robot):
    """One joint; counts the actions that it gets."""

    config_class, name = StillConfig, 'still'
    action_features = observation_features = {'joint.pos': float}
    is_connected = is_calibrated = True

    def __init__(self, config):
        super().__init__(config)
        self.count = 0

    def get_observation(self):
        return {'joint.pos': 0.0}

    def send_action(self, action):
        self.count += 1
        return action

    connect = calibrate = configure = disconnect = lambda self, *_: None


class Server(PolicyServer):
    """LeRobot's, with a policy that gives ten actions; `lost` of its answers do not arrive."""

    def __init__(self, lost):
        super().__init__(PolicyServerConfig(host='localhost', port=8080))
        self.lost, self.observations = lost, 0

    def SendPolicyInstructions(self, request, context):
        state = {'dtype': 'float32', 'shape': (1,), 'names': ['joint.pos']}
        self.lerobot_features, self.actions_per_chunk = {'observation.state': state}, 10
        chunk = lambda observation: torch.zeros(1, 10, 1)
        self.policy = SimpleNamespace(predict_action_chunk=chunk, config=SimpleNamespace(image_features={}))
        self.preprocessor = self.postprocessor = lambda x: x
        return services_pb2.Empty()

    def SendObservations(self, request_iterator, context):
        self.observations += 1
        return super().SendObservations(request_iterator, context)

    def GetActions(self, request, context):
        answer = super().GetActions(request, context)
        if answer.ByteSize() and self.lost:
            self.lost -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, 'the connection broke')
        return answer


def drive(lost):
    """(observations that the server got, actions that the robot carried out) in some seconds."""
    servicer, server = Server(lost), grpc.server(futures.ThreadPoolExecutor(4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port('localhost:0')
    server.start()
    client = RobotClient(RobotClientConfig(
        policy_type='act', pretrained_name_or_path='none', robot=StillConfig(), actions_per_chunk=10,
        server_address=f'localhost:{port}',
    ))
    assert client.start()
    threading.Thread(target=client.receive_actions, daemon=True).start()
    threading.Timer(SECONDS, client.shutdown_event.set).start()
    client.control_loop(task='')
    client.stop()
    server.stop(0)
    return servicer.observations, client.robot.count


print(f'python {platform.python_version()}, lerobot {version("lerobot")}, grpcio {grpc.__version__}')
found = {lost: drive(lost) for lost in (0, 1)}
for lost, (observations, actions) in found.items():
    print(f'{lost} answers lost: {observations} observations sent in {SECONDS} s, {actions} actions carried out')
(_, well), (observations, stuck) = found[0], found[1]
sys.stdout.flush()
sys.exit(None if well > 20 * SECONDS / 2 and observations > 20 * SECONDS / 2 and stuck == 0 else 'behaves otherwise now')
END
cd "$DIR"
"$DIR/env/bin/python" "$DIR/show.py"
