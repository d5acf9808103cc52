#!/usr/bin/env bash
# lerobot 0.6.1 (0.6.0 has the same lines): q01 and q99 in meta/stats.json are means of the episodes' quantiles.
#
# One expects: q01 and q99 of all rows: 1 % of the rows below, 1 % above.
# What happens: they are means of the episodes' q01 and q99, weighted by length. Where episodes differ in place, as
#   demonstrations with objects in different places do, the interval is too narrow and many rows lie outside. min, max, mean
#   and std, gathered in the same place, are exact, so nothing looks wrong. `recompute_stats` gathers in the same way.
# Whom it hurts: policies that scale by quantiles (pi0.5): far more than 2 % of the rows lie outside [-1, 1], some a long way.
#
# Needs about 5 GB and some minutes: lerobot asks for PyTorch, whose Linux wheels bring CUDA.
# Usage: PYTHON=python3.12 findings/lerobot_mean_quantiles.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.12}" -m venv "$DIR/env"
"$DIR/env/bin/pip" -qq install --no-compile torch==2.11.0 torchvision==0.26.0 av==15.1.0 datasets==4.8.5 draccus==0.11.6 \
  einops==0.8.2 gymnasium==1.4.0 numpy==2.2.6 pandas==2.3.3 pyarrow==26.0.1 requests==2.34.2 safetensors==0.8.0 termcolor==3.3.0
"$DIR/env/bin/pip" -qq install --no-compile --no-deps lerobot==0.6.1
export HF_HOME="$DIR/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1

cat > "$DIR/show.py" <<'END'
import pathlib
import platform
import sys
from importlib.metadata import version

import numpy as np
from lerobot.datasets import LeRobotDataset

EPISODES, FRAMES = 20, 200


def record(root, spread):
    """(statistics, rows): one joint that moves about a place that differs between episodes by `spread`."""
    rng = np.random.default_rng(0)
    features = {'action': {'dtype': 'float32', 'shape': (1,), 'names': ['x']}}
    writer = LeRobotDataset.create('tests/tiny', fps=10, features=features, root=root, use_videos=False)
    rows = rng.normal(size=(EPISODES, 1)) * spread + rng.normal(size=(EPISODES, FRAMES))
    for episode in rows.astype(np.float32):
        for value in episode:
            writer.add_frame({'action': value[None], 'task': 'reach'})
        writer.save_episode()
    writer.finalize()
    return LeRobotDataset('tests/tiny', root=root).meta.stats['action'], rows.ravel()


def outside(rows, low, high):
    return np.mean((rows < low) | (rows > high))


print(f'python {platform.python_version()}, lerobot {version("lerobot")}, numpy {np.__version__}')
shares = []
for spread in (0, 1, 3):
    stats, rows = record(pathlib.Path(sys.argv[1]) / str(spread), spread)
    theirs, exact = (stats['q01'].item(), stats['q99'].item()), np.quantile(rows, [0.01, 0.99])
    shares.append(outside(rows, *theirs))
    print(f'episodes apart by {spread} of their own std')
    print(f'  stats.json: [{theirs[0]:5.2f}, {theirs[1]:5.2f}], {shares[-1]:.1%} of the rows outside')
    print(f'  of the rows: [{exact[0]:5.2f}, {exact[1]:5.2f}], {outside(rows, *exact):.1%} outside')
    assert np.allclose([stats['min'].item(), stats['max'].item()], [rows.min(), rows.max()])
sys.exit(None if shares[0] < 0.04 and shares[1] > 0.05 and shares[2] > 0.2 else f'behaves otherwise now: {shares}')
END
"$DIR/env/bin/python" "$DIR/show.py" "$DIR/sets"
