#!/usr/bin/env bash
# huggingface_hub 1.20.0 and 2.4.0: without the hub, `snapshot_download` returns a folder that lacks the files asked for.
#
# One expects: LocalEntryNotFoundError from `snapshot_download(..., allow_patterns=['*.safetensors'], local_files_only=True)`
#   where the cache holds no such file, as `hf_hub_download` raises it for that file.
# What happens: an earlier download of one other file of the revision has made its folder, and that folder is returned as if
#   it were whole: no error, no warning. So does a call without `local_files_only` while the hub cannot be reached. (From 1.22
#   it checks folders that `snapshot_download` itself has made; those that `hf_hub_download` has made go on as before.)
# Whom it hurts: jobs on machines without a network, and jobs that start while the hub is down: the first thing that they
#   see is a missing file, or, where files are optional, a policy without its statistics.
#
# Usage: PYTHON=python3.12 findings/hub_partial_snapshot.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT

cat > "$DIR/show.py" <<'END'
import http.server
import os
import platform
import sys
import threading

REVISION, FILES = 'a' * 40, {'config.json': b'{}', 'model.safetensors': b'weights'}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as the client asks for, on this machine."""

    def do_GET(self):
        data = FILES.get(self.path.split('/')[-1], b'')
        self.send_response(200 if data else 404)
        for header in (('X-Repo-Commit', REVISION), ('ETag', f'"{"0" * 40}"'), ('Content-Length', str(len(data)))):
            self.send_header(*header)
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}', 'HF_HOME': sys.argv[1], 'NO_PROXY': '127.0.0.1'}

import huggingface_hub as hub  # noqa: E402: reads the variables

print(f'python {platform.python_version()}, huggingface_hub {hub.__version__}')
seen = {'hf_hub_download': [os.path.basename(hub.hf_hub_download('robots/tiny', 'config.json'))]}
asked = {'repo_id': 'robots/tiny', 'allow_patterns': ['*.safetensors']}
seen['snapshot_download, local only'] = os.listdir(hub.snapshot_download(**asked, local_files_only=True))
try:
    hub.hf_hub_download('robots/tiny', 'model.safetensors', local_files_only=True)
except hub.errors.LocalEntryNotFoundError:
    seen['hf_hub_download, local only'] = 'LocalEntryNotFoundError'
server.shutdown()
server.server_close()
seen['snapshot_download, no hub'] = os.listdir(hub.snapshot_download(**asked))
print(*(f'{call:31} {names}' for call, names in seen.items()), sep='\n')
expected = [['config.json']] * 2 + ['LocalEntryNotFoundError', ['config.json']]
sys.exit(None if list(seen.values()) == expected else 'behaves otherwise now')
END
for version in 1.20.0 2.4.0; do
  "${PYTHON:-python3.12}" -m venv "$DIR/$version"
  "$DIR/$version/bin/pip" -qq install "huggingface_hub==$version"
  "$DIR/$version/bin/python" "$DIR/show.py" "$DIR/$version/cache"
done
