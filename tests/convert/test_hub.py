"""Checkpoints by hub id: the real client against a server on this machine."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from sigma_jax import trees
from sigma_jax.convert import checkpoint, hub
from sigma_jax.errors import UserError
from tests import golden

REVISION = 'a' * 40
SCRIPT = golden.DATA.parents[1] / 'convert_weights.py'


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for one snapshot."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition('?')[0]
        self.asked.append(path)
        listing = [{'type': 'file', 'path': k, 'size': len(x), 'oid': '0' * 40} for k, x in self.files.items()]
        answers = {
            f'/api/models/robots/tiny/tree/{REVISION}': json.dumps(listing).encode(),
            '/api/models/robots/tiny/revision/v1': json.dumps(
                {'id': 'robots/tiny', 'sha': REVISION, 'siblings': [{'rfilename': name} for name in self.files]}
            ).encode(),
        } | {f'/robots/tiny/resolve/{REVISION}/{name}': data for name, data in self.files.items()}
        answer = answers.get(path)
        self.send_response(404 if answer is None else 200)
        self.send_header('X-Repo-Commit', REVISION)
        self.send_header('ETag', f'"{hashlib.sha256(answer or b"").hexdigest()}"')
        self.send_header('Content-Length', str(len(answer or b'')))
        self.end_headers()
        if body:
            self.wfile.write(answer or b'')


def run(name, out, home, endpoint, **environment):
    settings = {'HF_ENDPOINT': endpoint, 'HF_HOME': str(home), 'JAX_PLATFORMS': 'cpu', 'no_proxy': '127.0.0.1'}
    command = [sys.executable, str(SCRIPT), f'--checkpoint={name}', f'--out={out}']
    environment = os.environ | settings | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_snapshot_is_fetched_once_and_without_pickles(tmp_path):
    files = {
        'model.safetensors': (golden.FIXTURE / 'lerobot.safetensors').read_bytes(),
        'config.json': (golden.FIXTURE / 'config.json').read_bytes(),
        'pytorch_model.bin': b'never asked for',
    }
    handler = functools.partial(type('Serving', (Hub,), {'files': files, 'asked': (asked := [])}))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f'http://127.0.0.1:{server.server_port}'
        first = run('robots/tiny@v1', tmp_path / 'one', tmp_path / 'home', endpoint)
        server.shutdown()
    assert first.returncode == 0, first.stderr
    want = trees.digest(checkpoint.load(golden.FIXTURE / 'lerobot.safetensors').params)
    assert trees.digest(checkpoint.load(tmp_path / 'one').params) == want
    assert any('model.safetensors' in path for path in asked) and not any('.bin' in path for path in asked)
    again = run('robots/tiny@v1', tmp_path / 'two', tmp_path / 'home', endpoint, HF_HUB_OFFLINE='1')
    assert again.returncode == 0 and (tmp_path / 'two/params/_METADATA').is_file()
    absent = run('robots/other', tmp_path / 'three', tmp_path / 'home', endpoint, HF_HUB_OFFLINE='1')
    assert absent.returncode == 2 and 'expected robots/other on the hub, got' in absent.stderr
    assert 'Traceback' not in absent.stderr and not (tmp_path / 'three').exists()


@pytest.mark.parametrize('name', ['nowhere', 'a/b/c', '/tmp/nowhere', 'runs/base.safetensors'])
def test_what_is_neither_a_path_nor_a_hub_id(name):
    with pytest.raises(UserError, match=f'expected a checkpoint at {name}, got no such file or folder, nor a hub id'):
        hub.local_path(name)
