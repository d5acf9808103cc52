"""A policy served to robots over a network, until a signal ends it."""

import asyncio
import dataclasses
import gc
import os
import pathlib
import tempfile
from collections.abc import Sequence

from sigma_jax import xla
from sigma_jax.errors import UserError
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.protocol import Policy, Program
from sigma_jax.policies.serving import running
from sigma_jax.policies.serving.batching import Batcher
from sigma_jax.policies.serving.lerobot.service import LerobotServer, LerobotSettings
from sigma_jax.policies.serving.limits import check_key, tls_context
from sigma_jax.policies.serving.metrics import Metrics
from sigma_jax.policies.serving.openpi.keys import ANY, KeyMap, parse_keys
from sigma_jax.policies.serving.openpi.server import OpenpiServer, OpenpiSettings
from sigma_jax.policies.serving.openpi.wire import Bounds
from sigma_jax.policies.serving.recording import Recorder
from sigma_jax.policies.serving.running import Server
from sigma_jax.processing.processor import Processor
from sigma_jax.training.compilation import enable_compilation_cache
from sigma_jax.training.progress import SILENT, Reporter

MIB = 2**20
MAX_BATCH = 8
MOST = 1_000_000  # of what has no bound of its own; gRPC counts milliseconds in 31 bits
BOUNDS: dict[str, tuple[float, float, str]] = {  # least, most, what to do
    'port': (0, 65535, '0 takes a free one'),
    'lerobot_port': (-1, 65535, '0 takes a free one, -1 serves none'),
    'max_batch': (0, MOST, '0 stands for 8, or 1 on a CPU'),
    'max_wait_ms': (0, MOST, 'choose one'),
    'clients': (1, MOST, 'choose one'),
    'rate': (0, MOST, '0 stands for no bound'),
    'max_message_mib': (0.001, MOST, 'choose one'),
    'idle_s': (0.001, MOST, 'choose one'),
    'drain_s': (0.001, MOST, 'choose one'),
    'record_fps': (1, 1000, 'choose one'),
}


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """How a policy is served.

    Attributes:
      host: address to listen at; beyond this machine's own a key is required.
      port: of openpi's protocol.
      lerobot_port: of LeRobot's; -1: its clients are not served.
      lerobot_joints: names of the joints as a LeRobot robot has them, by commas, in the policy's
        order; by them a client is known that was there before the server was started anew.
      keys: names that clients have for cameras, state and instruction; see
        `policies.serving.openpi.keys.parse_keys`.
      default_prompt: the instruction of an observation without one.
      max_batch: requests computed together, at most; 0: 8, or 1 on a CPU, which takes one row after
        the other and gains nothing.
      max_wait_ms: how long a batch waits for the robots that will ask again.
      clients: connections, at most.
      rate: requests a second of a client, at most; 0: no bound.
      max_message_mib: of a request, MiB.
      idle_s: after which a client that asks nothing is disconnected.
      drain_s: longest wait for the last answers after SIGTERM.
      api_key_file: holds the key that clients must send; '': none.
      tls_certificate: file of the certificate chain, PEM; '': no TLS.
      tls_key: its private key's file.
      record: folder for what comes and goes, as a LeRobot data set; '': nothing is kept.
      record_fps: frames a second that the data set claims.
      warm_up: whether programs are compiled at the start, beside the server.
      compilation_cache: folder of compiled programs; '': none are kept.
    """

    host: str = '127.0.0.1'
    port: int = 8000
    lerobot_port: int = -1
    lerobot_joints: str = ''
    keys: str = 'lerobot'
    default_prompt: str = ''
    max_batch: int = 0
    max_wait_ms: float = 10.0
    clients: int = 64
    rate: float = 200.0
    max_message_mib: float = 32.0
    idle_s: float = 600.0
    drain_s: float = 10.0
    api_key_file: str = ''
    tls_certificate: str = ''
    tls_key: str = ''
    record: str = ''
    record_fps: int = 10
    warm_up: bool = True
    compilation_cache: str = ''

    def check(self) -> None:
        """What can be seen before a policy is read; `serve` sees it too.

        Raises:
          UserError: a key that is needed and absent, a certificate that is none, a bound that makes
            no sense, a folder that cannot be written.
        """
        check_key(self.host, read_key(self.api_key_file))
        tls_context(self.tls_certificate, self.tls_key)
        for name, (least, most, do) in BOUNDS.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise UserError(f'expected {name} from {least:,} to {most:,}, got {value!r}; {do}')
        if self.compilation_cache:
            check_writable(
                'compilation_cache',
                pathlib.Path(os.path.expandvars(self.compilation_cache)).expanduser(),
            )
        if self.record:
            check_writable('record', pathlib.Path(self.record).parent)

    def check_for(self, policy: Policy) -> None:
        """What can be seen once the policy is there; `serve` sees it too.

        Args:
          policy: that is served.

        Raises:
          UserError: a setting that does not fit it.
        """
        joints = joint_names(self.lerobot_joints)
        if joints and len(joints) != policy.spec.state_dim:
            raise UserError(
                f'expected lerobot_joints as {policy.spec.state_dim} names, got {len(joints)} '
                f'({", ".join(joints)}); name each joint of the state'
            )
        if not isinstance(policy, ActingPolicy):
            return
        if policy.cameras and not policy.spec.cameras:
            raise UserError(
                'expected no cameras to rename, since this policy takes any by their order, got '
                f'{", ".join(policy.cameras)}; leave --cameras out'
            )
        if self.default_prompt:
            check_task(policy.actor.processor, self.default_prompt)


def serve(
    policy: Policy, config: ServingConfig = ServingConfig(), *, reporter: Reporter = SILENT
) -> bool:
    """Serves a policy until SIGTERM or SIGINT; then answers what is there, and ends.

    Args:
      policy: that acts, of `load_policy`. Nobody else may call it meanwhile.
      config: how.
      reporter: receives the address, and the programs that are compiled.

    Returns:
      Whether everything that was asked was answered. The policy may still compute, or compile.

    Raises:
      UserError: a setting that makes no sense, an address that cannot be had, or a key that is
        needed and absent.
    """
    config.check()
    config.check_for(policy)
    enable_compilation_cache(config.compilation_cache, least_s=0.0)
    metrics, keys = Metrics(), parse_keys(config.keys, policy.spec)
    settings = openpi_settings(config, keys)
    most = config.max_batch or (1 if xla.alone() else MAX_BATCH)
    batcher = Batcher(policy, most, config.max_wait_ms / 1e3, on_batch=metrics.batch)
    recorder = Recorder(config.record, policy.spec, config.record_fps) if config.record else None
    metrics.gauge('waiting', 'requests that wait for their batch', lambda: batcher.waiting)
    servers: list[Server] = [OpenpiServer(batcher, settings, metrics, recorder)]
    if config.lerobot_port >= 0:
        shared = lerobot_settings(config, settings)
        servers.append(LerobotServer(batcher, shared, metrics, recorder))
    cameras = policy.spec.cameras or camera_names(keys)
    programs = policy.programs(batcher.sizes, cameras) if cameras else []
    start = _Start(config, reporter, batcher, programs)
    try:
        return asyncio.run(
            running.run(
                batcher,
                servers,
                grace_s=config.drain_s,
                on_start=start.tell,
                meanwhile=start.compile_all,
            )
        )
    finally:
        if recorder is not None and (kept := recorder.close()) is not None:
            reporter.say(f'recorded to {kept}')


@dataclasses.dataclass(frozen=True)
class _Start:
    """What a user is told while a server starts, and the programs that it compiles."""

    config: ServingConfig
    reporter: Reporter
    batcher: Batcher
    programs: Sequence[Program]

    def tell(self, ports: Sequence[int]) -> None:
        scheme = 'wss' if self.config.tls_certificate else 'ws'
        self.reporter.say(f'serving at {scheme}://{self.config.host}:{ports[0]}')
        if len(ports) > 1:
            self.reporter.say(f'serving LeRobot at {self.config.host}:{ports[1]}')

    async def compile_all(self) -> None:
        if not self.config.warm_up or not self.programs:
            why = (
                'warm_up is off' if self.programs else 'the policy takes any camera, keys name none'
            )
            self.reporter.say(f'the first request compiles: {why}')
            return
        gc.freeze()  # a look through all that is loaded would keep the servers waiting
        with self.reporter.bars() as bars:
            bar = bars.add('programs', total=len(self.programs))
            await running.warm_up(
                self.batcher,
                self.programs,
                lambda size, done, *_: bar.update(done, note=f'batch of {size}'),
            )
        gc.freeze()  # what compiling left is not looked through again and again
        self.reporter.say('ready: every program is compiled')


def camera_names(keys: KeyMap) -> list[str]:
    """Cameras of the policy that clients send.

    Args:
      keys: the clients' names.

    Returns:
      In order; none where every name passes as it is.
    """
    return [pair[1] for pair in keys.cameras if pair != ANY]


def openpi_settings(config: ServingConfig, keys: KeyMap) -> OpenpiSettings:
    """What of a config concerns openpi's clients.

    Args:
      config: how a policy is served.
      keys: that `config.keys` stands for.

    Returns:
      Settings of the server.

    Raises:
      UserError: a key's file that is not there or empty.
    """
    return OpenpiSettings(
        host=config.host,
        port=config.port,
        keys=keys,
        default_task=config.default_prompt,
        key=read_key(config.api_key_file),
        certificate=config.tls_certificate,
        private_key=config.tls_key,
        bounds=Bounds(bytes=int(config.max_message_mib * MIB)),
        clients=config.clients,
        rate=config.rate,
        idle_s=config.idle_s,
    )


def lerobot_settings(config: ServingConfig, shared: OpenpiSettings) -> LerobotSettings:
    """What of a config concerns LeRobot's clients.

    Args:
      config: how a policy is served.
      shared: what they have in common with openpi's, checked.

    Returns:
      Settings of the server.
    """
    return LerobotSettings(
        host=shared.host,
        port=config.lerobot_port,
        key=shared.key,
        certificate=shared.certificate,
        private_key=shared.private_key,
        limit=shared.bounds.bytes,
        clients=shared.clients,
        rate=shared.rate,
        idle_s=shared.idle_s,
        joints=joint_names(config.lerobot_joints),
    )


def joint_names(text: str) -> tuple[str, ...]:
    """Names of a setting.

    Args:
      text: names, by commas.

    Returns:
      In order, without blanks; () of ''.
    """
    return tuple(name.strip() for name in text.split(',') if name.strip())


def check_task(processor: Processor, task: str) -> None:
    """Whether an instruction fits the prompt of a policy, at an average state.

    Args:
      processor: the policy's.
      task: the instruction.

    Raises:
      UserError: it is too long.
    """
    state = processor.normalized(processor.statistics['state'].mean)
    try:
        processor.prompt(task, state)
        processor.text(task)
    except UserError as error:
        raise UserError(
            f'expected a default_prompt that the policy can read, got: {error}'
        ) from error


def check_writable(setting: str, folder: pathlib.Path) -> None:
    """Whether files can be written to a folder, which is made where it is absent.

    Args:
      setting: that names it.
      folder: to be written to.

    Raises:
      UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f'expected {setting} where files can be written, got {folder} '
            f'({error.strerror}); choose a folder of yours'
        ) from error


def read_key(file: str) -> str:
    """The key in a file.

    Args:
      file: its first line is the key; '': there is none.

    Returns:
      The key, without blanks around it.

    Raises:
      UserError: the file is not there, or holds none.
    """
    if not file:
        return ''
    path = pathlib.Path(file)
    key = path.read_text().strip() if path.is_file() else ''
    if not key or not key.isascii() or len(key.split()) != 1:
        raise UserError(
            f'expected a key, one word in ASCII, in {file}, got {"none" if not key else "others"}; '
            'write one there: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return key
