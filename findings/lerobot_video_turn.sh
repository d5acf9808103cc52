#!/usr/bin/env bash
# lerobot 0.6.1: its two video backends show a video whose container says "turned" in two ways.
#
# One expects: the same frame from `decode_video_frames(..., backend='pyav')` and `backend='torchcodec'`.
# What happens: torchcodec turns the frame as the container's display matrix says, pyav gives it as stored. Which one is
#   taken depends on the platform and on whether torchcodec finds FFmpeg's libraries; if not, a warning says it is pyav.
# Whom it hurts: who brings films of a phone or of a camera mounted sideways into a data set: trained on one machine and run on
#   another, the policy sees the world on its side or upside down.
#
# Needs about 5 GB and some minutes: lerobot asks for PyTorch, whose Linux wheels bring CUDA.
# Usage: PYTHON=python3.12 findings/lerobot_video_turn.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.12}" -m venv "$DIR/env"
"$DIR/env/bin/pip" -qq install --no-compile torch==2.11.0 torchvision==0.26.0 torchcodec==0.11.1 av==15.1.0 datasets==4.8.5 \
  draccus==0.11.6 einops==0.8.2 gymnasium==1.4.0 numpy==2.2.6 pandas==2.3.3 pyarrow==26.0.1 \
  requests==2.34.2 safetensors==0.8.0 termcolor==3.3.0
"$DIR/env/bin/pip" -qq install --no-compile --no-deps lerobot==0.6.1
export HF_HOME="$DIR/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1

# torchcodec wants FFmpeg's shared libraries under their plain names; PyAV's wheel brings them under names of its own
mkdir "$DIR/ffmpeg"
ln -s "$DIR"/env/lib/python3*/site-packages/av.libs/* "$DIR/ffmpeg/"
for lib in "$DIR"/ffmpeg/lib{av,sw}*; do ln -s "$lib" "$(sed -E 's/-[0-9a-f]+(\.so\.[0-9]+).*/\1/' <<< "$lib")"; done

cat > "$DIR/show.py" <<'END'
import struct
import sys
from importlib.metadata import version

import av
import numpy as np
from lerobot.datasets.video_utils import decode_video_frames

CORNERS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255), 'white': (255, 255, 255)}


def film(path, a, b, c, d):
    """A video of red green / blue white whose container says: a step right leads to (a, b), a step down to (c, d)."""
    picture = np.array(list(CORNERS.values()), np.uint8).reshape(2, 2, 3).repeat(32, 0).repeat(48, 1)
    with av.open(path, 'w') as container:
        stream = container.add_stream('libx264', rate=10, width=96, height=64, pix_fmt='yuv420p')
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode())
    with open(path, 'r+b') as file:
        file.seek(file.read().index(b'tkhd') + 44)
        file.write(struct.pack('>9i', a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30))
    return path


def corners(image):
    corner = image[:, [[8, 8], [-8, -8]], [[8, -8], [8, -8]]].astype(int)
    near = [min(CORNERS, key=lambda name: np.abs(corner[:, r, c] - CORNERS[name]).sum()) for r, c in np.ndindex(2, 2)]
    return '{} {} / {} {}'.format(*near)


print(f'python {sys.version.split()[0]},', ', '.join(f'{name} {version(name)}' for name in ('lerobot', 'torchcodec', 'av')))
seen = {}
for turn, matrix in {'none': (1, 0, 0, 1), 'a quarter': (0, 1, -1, 0), 'a half': (-1, 0, 0, -1)}.items():
    path = film(f'{sys.argv[1]}/{turn}.mp4', *matrix)
    for backend in ('pyav', 'torchcodec'):
        image = decode_video_frames(path, [0.0], 0.01, backend, return_uint8=True)[0].numpy()
        seen[turn, backend] = corners(image)
        print(f'{turn:9} {backend:10} {image.shape}  {seen[turn, backend]}')
stored, quarter, half = 'red green / blue white', 'blue red / white green', 'white blue / green red'
sys.exit(None if list(seen.values()) == [stored, stored, stored, quarter, stored, half] else 'behaves otherwise now')
END
LD_LIBRARY_PATH="$DIR/ffmpeg" "$DIR/env/bin/python" "$DIR/show.py" "$DIR"
