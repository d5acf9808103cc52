#!/usr/bin/env bash
# lerobot 0.6.1: depth frames come back from its 12-bit codes without the places where the sensor saw nothing.
#
# One expects: 0 in a uint16 depth frame, which depth cameras give where they have no reading, to be 0 again after
#   `dequantize_depth(quantize_depth(...))`; the video itself is lossless by default.
# What happens: it comes back as depth_min, 10 mm with the settings as they are: a surface right before the lens, not to be told
#   from a real reading there. Nothing keeps a mask. (That values below depth_min are clipped is documented; that "no reading"
#   is one of them is not.)
# Whom it hurts: who trains on depth recorded with holes; means and minima of a frame; masks of the kind `depth > 0`, which are
#   true everywhere.
#
# Needs about 5 GB and some minutes: lerobot asks for PyTorch, whose Linux wheels bring CUDA.
# Usage: PYTHON=python3.12 findings/lerobot_depth_holes.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.12}" -m venv "$DIR/env"
"$DIR/env/bin/pip" -qq install --no-compile torch==2.11.0 torchvision==0.26.0 av==15.1.0 datasets==4.8.5 draccus==0.11.6 \
  einops==0.8.2 gymnasium==1.4.0 numpy==2.2.6 pandas==2.3.3 pyarrow==26.0.1 requests==2.34.2 safetensors==0.8.0 termcolor==3.3.0
"$DIR/env/bin/pip" -qq install --no-compile --no-deps lerobot==0.6.1
export HF_HOME="$DIR/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1

cat > "$DIR/show.py" <<'END'
import platform
import sys
from importlib.metadata import version

import numpy as np
from lerobot.datasets.depth_utils import dequantize_depth, quantize_depth

frame = np.full((4, 6), 800, np.uint16)  # a table 800 mm away
frame[1:3, :4] = 0  # shiny: no reading
frame[0, 0] = 10  # one reading at 10 mm


def through(**settings):
    codes = quantize_depth(frame, video_backend=None, **settings)
    return dequantize_depth(codes, output_tensor=False, **settings)[0]


print(f'python {platform.python_version()}, lerobot {version("lerobot")}, numpy {np.__version__}')
print(f'recorded, mm:\n{frame}\ncomes back, mm:\n{through()}')
print(f'pixels with `depth > 0`: {(frame > 0).sum()} recorded, {(through() > 0).sum()} come back, of {frame.size}')
seen = {}
for settings in ({}, {'use_log': False}, {'depth_min': 0.2, 'depth_max': 2.0}):
    back = through(**settings)
    seen[str(settings)] = sorted(set(back[frame == 0].tolist()))
    print(f'{settings or "settings as they are"}: no reading comes back as {seen[str(settings)]} mm')
sys.exit(None if list(seen.values()) == [[10], [10], [200]] else 'behaves otherwise now')
END
"$DIR/env/bin/python" "$DIR/show.py"
