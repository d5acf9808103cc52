#!/usr/bin/env bash
# openpi-client 0.1.2: installed as its metadata asks, its websocket client cannot be imported.
#
# One expects: `pip install openpi-client` gives what `import openpi_client.websocket_client_policy` needs.
# What happens: `ModuleNotFoundError: No module named 'typing_extensions'`. The module is imported and stands in no
#   `Requires-Dist`; environments that hold another package which asks for it, such as PyTorch, do not show it. Nor do the
#   newest releases of what it does ask for (dm-tree, msgpack, numpy < 2, pillow, websockets) bring it.
# Whom it hurts: a robot's small computer, where the client is all that is installed.
#
# Usage: PYTHON=python3.11 findings/openpi_client_import.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.11}" -m venv "$DIR/client"
"$DIR/client/bin/pip" -qq install openpi-client==0.1.2
cat > "$DIR/show.py" <<'END'
import importlib.metadata as metadata
import platform
import sys

print(f'python {platform.python_version()}, openpi-client {metadata.version("openpi-client")}')
print('asks for:', *metadata.requires('openpi-client'), sep='\n  ')
try:
    import openpi_client.websocket_client_policy
except ModuleNotFoundError as error:
    print(f'{type(error).__name__}: {error}')
    sys.exit(None if error.name == 'typing_extensions' else 'behaves otherwise now')
sys.exit('behaves otherwise now')
END
"$DIR/client/bin/python" "$DIR/show.py"
