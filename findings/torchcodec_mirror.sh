#!/usr/bin/env bash
# torchcodec 0.11.1: a video that its container mirrors is turned, or left as it is, without a word.
#
# One expects: a display matrix that mirrors to be followed as one that turns is, or to be refused.
# What happens: only an angle is taken from the matrix. Mirrored left to right gives a half turn, mirrored along the diagonal
#   a quarter turn, and mirrored top to bottom the frame as it is stored; all three are of the right size.
# Whom it hurts: who trains on films of front cameras that mark a mirror in the container: the picture stands on its head,
#   on its side, or has up and down exchanged.
#
# Needs about 5 GB and some minutes: the Linux wheels of PyTorch bring CUDA.
# Usage: PYTHON=python3.12 findings/torchcodec_mirror.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.12}" -m venv "$DIR/env"
"$DIR/env/bin/pip" -qq install --no-compile torch==2.11.0 torchcodec==0.11.1 av==15.1.0 numpy==2.2.6

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
from torchcodec.decoders import VideoDecoder

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


STORED, HALF, QUARTER = 'red green / blue white', 'white blue / green red', 'blue red / white green'
CASES = {  # matrix, what it says, what is given
    'a half turn': ((-1, 0, 0, -1), HALF, HALF),
    'left to right': ((-1, 0, 0, 1), 'green red / white blue', HALF),
    'top to bottom': ((1, 0, 0, -1), 'blue white / red green', STORED),
    'the diagonal': ((0, 1, 1, 0), 'red blue / green white', QUARTER),
}
print(f'python {sys.version.split()[0]},', ', '.join(f'{name} {version(name)}' for name in ('torchcodec', 'torch', 'av')))
seen = {}
for name, (matrix, says, _) in CASES.items():
    seen[name] = corners(VideoDecoder(film(f'{sys.argv[1]}/{name}.mp4', *matrix))[0].numpy())
    print(f'{name:14} says {says:23} given {seen[name]}')
sys.exit(None if seen == {name: given for name, (*_, given) in CASES.items()} else 'behaves otherwise now')
END
LD_LIBRARY_PATH="$DIR/ffmpeg" "$DIR/env/bin/python" "$DIR/show.py" "$DIR"
