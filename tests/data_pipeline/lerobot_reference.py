"""LeRobot's own reader in an environment of its own, which REFERENCE_LEROBOT names.

Run as a script there: `python lerobot_reference.py CAMERA ROWS OUT.npz DATA...` writes the images
at the rows of every episode by both of its video readers. torchcodec needs shared libraries of
FFmpeg 4 to 8 on LD_LIBRARY_PATH.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

BACKENDS = ('torchcodec', 'pyav')


def images(
    roots: list[pathlib.Path], camera: str, rows: list[int]
) -> list[dict[str, list[list[np.ndarray | None]]]]:
    """For every data set {reader: for every episode the image at each row, None where LeRobot
    refuses}.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / 'out.npz'
        command = [
            os.environ['REFERENCE_LEROBOT'],
            __file__,
            camera,
            json.dumps(rows),
            str(out),
            *map(str, roots),
        ]
        offline = {'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(out) as found:
            read = {name: _image(found[name]) for name in found.files}
    results = []
    for n in range(len(roots)):
        episodes = 1 + max(int(name.split('/')[2]) for name in read if name.startswith(f'{n}/'))
        results.append(
            {
                b: [[read[f'{n}/{b}/{e}/{r}'] for r in rows] for e in range(episodes)]
                for b in BACKENDS
            }
        )
    return results


def _image(stored: np.ndarray) -> np.ndarray | None:
    return stored if stored.ndim == 3 else None


def main(camera: str, rows: str, out: str, *roots: str) -> None:
    """Writes {data set/reader/episode/row: uint8 [h w 3], or nothing where LeRobot refuses}."""
    from lerobot.datasets import LeRobotDataset

    found = {}
    for n, root in enumerate(roots):
        for backend in BACKENDS:
            dataset = LeRobotDataset('local/data', root=root, video_backend=backend)
            for number, entry in enumerate(dataset.meta.episodes):
                for row in json.loads(rows):
                    image = read(dataset, camera, entry['dataset_from_index'] + row)
                    found[f'{n}/{backend}/{number}/{row}'] = image
    np.savez(out, **found)


def read(dataset, camera: str, index: int) -> np.ndarray:
    """An image as uint8, or nothing."""
    try:
        image = dataset[index][camera]
    except Exception as error:
        if isinstance(error, (ImportError, AttributeError)) or 'libtorchcodec' in str(error):
            raise
        return np.zeros(0)
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


if __name__ == '__main__':
    main(*sys.argv[1:])
