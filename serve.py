"""Serves a policy to robots: openpi's websocket protocol, with /healthz and /metrics beside it, and
LeRobot's gRPC.

    python serve.py --policy=runs/base --tokenizer=assets/tokenizer/tokenizer.json
    # a client of openpi's for LIBERO, and a policy whose cameras are called up and side
    python serve.py --policy=runs/base \\
        --keys=libero,observation/image=up,observation/wrist_image=side
    # LeRobot's robot client too
    python serve.py --policy=runs/base --lerobot_port=8080
    # for other machines
    python serve.py --policy=runs/base --host=0.0.0.0 --api_key_file=key.txt \\
        --tls_certificate=cert.pem --tls_key=key.pem

The same with --check --card=rtx4090 says what memory and time it will take; the status is 1 where
it does not fit.

Requests that come together are computed together; programs are compiled beside the server, and kept
for the next start. SIGTERM or Ctrl-C ends it: what was asked is answered first; the status is 0,
or 1 where something was not.
"""

import argparse
import dataclasses
import logging
import os
import sys
from typing import Any

from rich.console import Console

import sigma_jax as sj
from sigma_jax.cli.command import reports_user_errors
from sigma_jax.cli.tables import show_serving_forecast


@reports_user_errors
def main() -> None:
    """Entry point."""
    arguments = parse()
    config = settings(arguments)
    if arguments.check:
        asked = {name: getattr(arguments, name) for name in ('card', 'base', 'dtype', 'max_batch')}
        found = sj.forecast_serving(arguments.policy, **asked)
        show_serving_forecast(found, Console())
        sys.exit(0 if found.fits else 1)
    config.check()
    show_log()
    reporter = sj.ConsoleReporter(Console(stderr=True), soft_wrap=True)
    reporter.say(f'reading {arguments.policy}')
    policy = load(arguments)
    sys.setswitchinterval(
        0.001
    )  # the server and the policy take turns; 5 ms would be an answer late
    answered = sj.serve(policy, config, reporter=reporter)
    sys.stderr.flush()
    os._exit(0 if answered else 1)  # where the policy still compiles, Python would wait for it


def load(arguments: argparse.Namespace) -> sj.Policy:
    """The policy, with its weights on the device."""
    names = 'base', 'tokenizer', 'seed', 'dtype', 'adapter', 'limited'
    chosen: Any = {name: getattr(arguments, name) for name in names}
    chosen['cameras'] = renamed(arguments.cameras)
    if arguments.chunking:
        chosen['chunking'] = sj.ChunkingConfig(arguments.chunking)
    return sj.load_policy(arguments.policy, storage=sj.QuantConfig(arguments.storage), **chosen)


def renamed(text: str) -> dict[str, str]:
    """{robot's name of a camera: policy's name} of a setting."""
    pairs = [[part.strip() for part in one.split('=')] for one in text.split(',') if one.strip()]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise sj.UserError(
            f'expected --cameras as pairs ROBOT=POLICY, got {text!r}; write front=up,wrist=side'
        )
    return dict(pairs)


def show_log() -> None:
    """What servers tell goes to stderr, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s'))
    log = logging.getLogger('sigma_jax')
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    # the socket's own log tells every opening and closing again, and scanners' nonsense
    logging.getLogger('sigma_jax.policies.serving.openpi.server.socket').setLevel(logging.CRITICAL)


def settings(arguments: argparse.Namespace) -> 'sj.ServingConfig':
    """What `sj.serve` takes of the command line."""
    names = {field.name for field in dataclasses.fields(sj.ServingConfig)}
    return sj.ServingConfig(**{k: v for k, v in vars(arguments).items() if k in names})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, sj.ServingConfig()
    add('--policy', required=True, help='folder of a policy, or a hub id')
    add('--tokenizer', default='', help='file, folder or hub id; default: beside the weights')
    add('--seed', type=int, default=0, help='of the noise; default: %(default)s')
    add('--dtype', default='float32', help='of matrix products; default: %(default)s')
    kinds = 'stored', 'bfloat16'
    add('--storage', choices=kinds, default='stored', help='of weights; default: %(default)s')
    add('--base', default='', help='of a training: its base, if it is elsewhere')
    add('--cameras', default='', help='ROBOT=POLICY,...: cameras called otherwise')
    how = 'how a chunk goes on from the one before: guided, lerobot or trained; default: not at all'
    add('--chunking', default='', help=how)
    off: Any = {'action': 'store_false'}
    add('--no_adapter', dest='adapter', help="a Sigma's residual in full, unweighed", **off)
    add('--no_limits', dest='limited', help="a Sigma's commands beyond its limits, too", **off)

    def option(name: str, text: str) -> None:
        value = getattr(default, name)
        add(f'--{name}', type=type(value), default=value, help=f'{text}; default: %(default)s')

    option('host', 'address to listen at; one that others reach asks for --api_key_file')
    option('port', '0 takes a free one')
    option('lerobot_port', "of LeRobot's protocol; 0 takes a free one, -1 serves none")
    option('lerobot_joints', "names of the joints in the policy's order, by commas")
    option('keys', 'names that clients have: lerobot, libero, droid, aloha, or CLIENT=POLICY,...')
    option('default_prompt', 'instruction of an observation without one')
    option('max_batch', 'requests computed together, at most; 0: 8, or 1 on a CPU')
    option('max_wait_ms', 'how long a batch waits for the robots that will ask again')
    option('clients', 'connections, at most')
    option('rate', 'requests a second of a client, at most; 0: no bound')
    option('max_message_mib', 'of a request')
    option('idle_s', 'after which a client that asks nothing is disconnected')
    option('drain_s', 'longest wait for the last answers')
    option('api_key_file', 'holds the key that clients must send')
    option('tls_certificate', 'the certificate chain, PEM')
    option('tls_key', 'its private key, PEM')
    option('record', 'folder for what comes and goes, as a LeRobot data set')
    option('record_fps', 'frames a second that the data set claims')
    add(
        '--compilation_cache',
        default='~/.cache/sigma_jax',
        help='folder of compiled programs, "" keeps none; default: %(default)s',
    )
    add('--no_warm_up', dest='warm_up', help='compile when first asked, not at the start', **off)
    add('--check', action='store_true', help='only say what memory and time it will take')
    add('--card', default='h100', help='that --check is for; default: %(default)s')
    return parser.parse_args()


if __name__ == '__main__':
    main()
