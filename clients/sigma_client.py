"""A robot's side of a served policy: numpy, websockets and msgpack. Copy this one file.

robot = Chunks(Client('ws://gpu-machine:8000', api_key='...'))
arm.move(robot.act(observation))  # in a loop, at the rate of the policy's actions"""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, sleep

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def write(x):
    """An array or number of numpy's, as openpi sends it."""
    if not isinstance(x, np.ndarray | np.generic) or x.dtype.kind in 'VOc':
        raise TypeError(f'expected numbers, texts and arrays, got {type(x).__name__}')
    if isinstance(x, np.generic):
        return {b'__npgeneric__': True, b'data': x.item(), b'dtype': x.dtype.str}
    return {b'__ndarray__': True, b'data': x.tobytes(), b'dtype': x.dtype.str, b'shape': x.shape}


def read(x):
    """The other way; arrays are not to be written to."""
    if b'__ndarray__' in x:
        return np.frombuffer(x[b'data'], x[b'dtype']).reshape(x[b'shape'])
    return np.dtype(x[b'dtype']).type(x[b'data']) if b'__npgeneric__' in x else x


class Client:
    """Asks for chunks. A connection that breaks, unless for good, is made again for `patience_s` at
    most: to the server another episode. `connections` counts; `ssl` is a context for wss://."""

    def __init__(self, uri, api_key='', patience_s=60.0, ssl=None):
        key = {'Authorization': f'Api-Key {api_key}'} if api_key else None
        self._connect = lambda: connect(uri, compression=None, additional_headers=key, ssl=ssl)
        self._patience_s, self._socket, self.connections = patience_s, None, 0
        self.metadata = msgpack.unpackb(self._try(None), object_hook=read)

    def infer(self, observation, **wishes):
        """`actions` [t a] and what else the policy tells; RuntimeError: the request was wrong."""
        answer = self._try(msgpack.packb({**observation, **wishes}, default=write))
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return msgpack.unpackb(answer, object_hook=read)

    def _try(self, message):
        end = perf_counter() + self._patience_s
        while True:
            try:
                if self._socket is None:
                    s = self._connect().__enter__()  # whatever websockets' `connect` returns
                    hello, self._socket, self.connections = s.recv(10), s, self.connections + 1
                if message is not None:
                    self._socket.send(message)
                return hello if message is None else self._socket.recv()
            except (ConnectionClosed, OSError, InvalidStatus) as error:
                self._socket, why = None, getattr(error, 'response', getattr(error, 'rcvd', None))
                code = getattr(why, 'status_code', getattr(why, 'code', 503))
                if code < 500 or code in (1002, 1003, 1008, 1009) or perf_counter() > end:
                    said = f'{error} {getattr(why, "body", b"").decode(errors="replace")}'.strip()
                    raise ConnectionError(f'expected an answer, got: {said}') from error
                sleep(0.2)


class Chunks:
    """One action a step. Of each chunk `steps` are carried out; the next is asked for so early that
    it comes meanwhile, and goes on from what is left. With `wait` the robot stands still for it."""

    def __init__(self, client, steps=None, wait=False):
        self.client, self._wait, self._pool = client, wait, ThreadPoolExecutor(1)
        self.steps = steps or client.metadata['action_steps']
        self._late = [0 if wait else 1]  # steps that passed while a chunk was computed
        self._chunk, self._at, self._asked = (), 0, None

    def reset(self):
        """The next observation is the first of an episode."""
        self._chunk, self._at, self._asked = (), 0, None
        self._pool.submit(self.client.infer, {'reset': True}).result()

    def act(self, observation):
        """The action to be carried out now."""
        delay, left = max(self._late), len(self._chunk) - self._at
        if self._asked is None and self._at >= min(self.steps, len(self._chunk)) - delay:
            most = 0 if self._wait or left <= 0 else self.client.metadata.get('max_delay', 0)
            rest = {'prefix': self._chunk[self._at :], 'delay': min(delay, most, left)}
            self._since, self._then = self._at, perf_counter()
            self._asked = self._pool.submit(self.client.infer, observation, **rest if most else {})
        if self._asked and (self._wait or left <= 0 or self._asked.done()):
            asked, self._asked = self._asked, None
            late, now = self._at - self._since, perf_counter()
            answer = asked.result()
            self._chunk = answer.get('motor_commands', answer['actions'])
            stood = (perf_counter() - now) / (now - self._then) * late  # still, for so many steps
            self._late = [*self._late[-9:], late + int(stood + 0.9)] if late else self._late
            self._at = min(late, len(self._chunk) - 1)
        self._at += 1
        return self._chunk[self._at - 1]
