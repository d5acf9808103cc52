"""As much of the Hugging Face hub as its client asks for a snapshot, on this machine, with the
troubles of the real.
"""

import contextlib
import email.utils
import hashlib
import http.server
import json
import pathlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import huggingface_hub.constants
import pytest

REVISION = 'a' * 40
SIGNATURE = 'X-Amz-Signature=0123456789abcdef'


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers from `files`; `troubles` maps a part of a path to what happens to the next requests
    for it, in order.

    A trouble is a status, (status, Retry-After), (403, what it says), 'reset' or 'cut' (after half
    of the body), 'refuse' (before an answer), 'no ranges' (answers with the whole file), 'other
    bytes', or 'signed': the answer is elsewhere, at an address that gives it to whoever has it, but
    no longer.
    """

    protocol_version = 'HTTP/1.1'
    files: dict[str, bytes]
    troubles: dict[str, list]
    asked: list[tuple[str, str, dict[str, str]]]
    repo: str

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition('?')[0]
        self.asked.append((self.command, path, dict(self.headers)))
        trouble = self._next_trouble(f'{self.command} {path}')
        answer, checksum = self._find(path)
        if trouble == 'refuse':
            return self._hang_up()
        if trouble == 'signed':
            return self._send(
                302, b'', body, {'Location': f'/elsewhere/x?{SIGNATURE}&X-Amz-Expires=1'}
            )
        if path.startswith('/elsewhere'):
            return self._send(403, b'{"error": "expired"}', body, {})
        if isinstance(trouble, int | tuple) or answer is None:
            status, more = trouble if isinstance(trouble, tuple) else (trouble, None)
            said = more or f'not for {self.headers.get("authorization")}'  # as no server should
            wait = {'Retry-After': more} if more else {}
            headers = {'X-Error-Message': said} if status == 403 else wait
            return self._send(status or 404, b'{"error": "no"}', body, headers)
        if trouble == 'other bytes':
            answer = bytes(len(answer))
        headers = {
            'X-Repo-Commit': REVISION,
            'ETag': f'"{checksum}"',
            'X-Linked-Size': str(len(answer)),
        }
        start = int(re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', 'bytes=0-'))[1])
        if start and trouble != 'no ranges':
            headers['Content-Range'] = f'bytes {start}-{len(answer) - 1}/{len(answer)}'
            return self._send(206, answer[start:], body, headers, trouble)
        return self._send(200, answer, body, headers, trouble)

    def _next_trouble(self, request: str):
        for part, list_ in self.troubles.items():
            if part in request and list_:
                return list_.pop(0)
        return None

    def _find(self, path: str):
        kind, _, rest = path.removeprefix('/api/').partition(self.repo)
        if not path.startswith('/api/'):
            data = self.files.get(path.partition(f'/resolve/{REVISION}/')[2])
            return data, hashlib.sha256(data or b'').hexdigest()
        listing = [
            {'type': 'file', 'path': k, 'size': len(x), 'oid': hashlib.sha256(x).hexdigest()[:40]}
            for k, x in self.files.items()
        ]
        names = [{'rfilename': name} for name in self.files]
        info = json.dumps({'id': self.repo, 'sha': REVISION, 'siblings': names}).encode()
        answers = {
            f'/tree/{REVISION}': json.dumps(listing).encode(),
            '/revision/v1': info,
            f'/revision/{REVISION}': info,
            '/revision/main': info,
            '': info,
        }
        return answers.get(rest) if kind in ('models/', 'datasets/') else None, '0' * 40

    def _send(self, status: int, data: bytes, body: bool, headers: dict, trouble=None) -> None:
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if trouble in ('reset', 'cut'):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(0.1)  # or a reset could overtake the bytes before it
            self._hang_up(trouble == 'reset')
        else:
            self.wfile.write(data)

    def _hang_up(self, reset: bool = True) -> None:
        if reset:  # no lingering: the other side sees a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
        self.connection.close()
        self.close_connection = True


class Quiet(http.server.ThreadingHTTPServer):
    """Says nothing of connections that were cut, which is what they are for."""

    def handle_error(self, request, client_address):
        pass


@contextlib.contextmanager
def serve(
    files: dict[str, bytes], repo: str = 'robots/tiny', **troubles: list
) -> Iterator[tuple[str, list, dict]]:
    """(endpoint, list of (method, path, headers) asked, troubles to fill in) while the block
    runs.
    """
    filled: dict[str, list] = dict(troubles)
    asked: list = []
    handler = type(
        'Serving', (Hub,), {'files': files, 'asked': asked, 'troubles': filled, 'repo': repo}
    )
    with Quiet(('127.0.0.1', 0), handler) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True
        ).start()
        yield f'http://127.0.0.1:{server.server_port}', asked, filled
        server.shutdown()


@contextlib.contextmanager
def on_hub(
    folder: pathlib.Path, cache: pathlib.Path, patch: pytest.MonkeyPatch
) -> Iterator[list[tuple]]:
    """While the block runs `robots/tiny@v1` is what is in a folder now; gives what was asked."""
    found = [file for file in folder.rglob('*') if file.is_file()]
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}
    patch.setenv('NO_PROXY', '127.0.0.1')
    constants = huggingface_hub.constants
    patch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    with serve(files) as (endpoint, asked, _):
        template = endpoint + '/{repo_id}/resolve/{revision}/{filename}'
        patch.setattr(constants, 'ENDPOINT', endpoint)
        patch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        yield asked


def http_date(seconds_from_now: float) -> str:
    """A moment as Retry-After may name it."""
    return email.utils.formatdate(time.time() + seconds_from_now, usegmt=True)
