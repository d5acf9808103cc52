#!/usr/bin/env bash
# lerobot 0.6.1: a frame's task text is taken by the row's position in meta/tasks.parquet, not by its task_index column.
#
# One expects: the text of the row whose task_index is the frame's: the column is there for that, `get_task_index` reads it,
#   and the order of a table's rows means nothing.
# What happens: `LeRobotDataset[i]['task']` is `tasks.iloc[task_index]`: with the same rows in another order, other texts,
#   without a word. `meta.get_task_index(text)` goes on to answer by the column, so the two contradict each other.
# Whom it hurts: whose tables were written or sorted by another tool (a query ORDER BY task, a merge, a removed and added
#   task): the policy learns instructions that belong to other episodes.
#
# Needs about 5 GB and some minutes: lerobot asks for PyTorch, whose Linux wheels bring CUDA.
# Usage: PYTHON=python3.12 findings/lerobot_task_order.sh (exit status 0: it still behaves so)
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
import pandas as pd
from lerobot.datasets import LeRobotDataset

TASKS = ('open the drawer', 'close the drawer', 'pour the water')
root = pathlib.Path(sys.argv[1])


def read():
    """{recorded task: (the text of its frames, the text whose task_index its frames have)}."""
    data = LeRobotDataset('tests/tiny', root=root)
    by_column = {data.meta.get_task_index(task): task for task in TASKS}
    return {task: (data[2 * i]['task'], by_column[int(data[2 * i]['task_index'])]) for i, task in enumerate(TASKS)}


features = {'action': {'dtype': 'float32', 'shape': (1,), 'names': ['x']}}
writer = LeRobotDataset.create('tests/tiny', fps=10, features=features, root=root, use_videos=False)
for task in TASKS:
    for _ in range(2):
        writer.add_frame({'action': np.zeros(1, np.float32), 'task': task})
    writer.save_episode()
writer.finalize()

print(f'python {platform.python_version()}, lerobot {version("lerobot")}, pandas {pd.__version__}')
path = root / 'meta' / 'tasks.parquet'
seen = {'as written': read()}
pd.read_parquet(path).sort_index().to_parquet(path)
seen['sorted by text'] = read()
for order, texts in seen.items():
    print(f'tasks.parquet {order}')
    for recorded, (text, column) in texts.items():
        print(f"  recorded {recorded!r}: item['task'] {text!r}, by the column {column!r}")
wrong = {order: sum(text != task for task, (text, _) in texts.items()) for order, texts in seen.items()}
assert all(column == task for texts in seen.values() for task, (_, column) in texts.items())
sys.exit(None if wrong == {'as written': 0, 'sorted by text': 2} else f'behaves otherwise now: wrong texts {wrong}')
END
"$DIR/env/bin/python" "$DIR/show.py" "$DIR/set"
