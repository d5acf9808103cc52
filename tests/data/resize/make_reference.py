"""What openpi's and LeRobot's `resize_with_pad` make of pictures of 20 shapes; run inside their own
installations.

    python make_reference.py openpi
    python make_reference.py lerobot

The first writes openpi.npz: the client's (Pillow) and the JAX version; the second lerobot.npz: the
PyTorch version on float32 pictures in 0..1. README.md has versions and commands behind the stored
ones. Of every result `SAMPLES` pixels are kept.
"""

import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
SAMPLES = 120  # pixels of a result
TARGETS = ((224, 224), (56, 56))
SHAPES = (
    (480, 640), (640, 480), (720, 1280), (360, 640), (224, 224), (225, 223), (100, 100),
    (56, 57), (33, 20), (2, 3), (1, 1), (500, 10), (10, 500), (300, 301), (97, 401), (448, 448),
    (448, 336), (150, 640), (20, 1000), (240, 424),
)  # fmt: skip


def picture(rows: int, cols: int) -> np.ndarray:
    """Edges, ramps and noise, in integers only, so that every numpy gives the same: uint8 [rows
    cols 3].
    """
    y, x = np.mgrid[:rows, :cols]
    ramp = (x * 255 // max(1, cols - 1) + 3 * y) % 256
    board = ((x // 5 + y // 7) % 2) * 255
    noise = np.random.default_rng(rows * 10007 + cols).integers(0, 256, (rows, cols))
    return np.stack([ramp, board, noise], axis=-1).astype(np.uint8)


def sampled(result: np.ndarray) -> np.ndarray:
    """[SAMPLES 3] pixels of a result, the same places for the same size."""
    flat = result.reshape(-1, 3)
    return flat[np.random.default_rng(len(flat)).integers(0, len(flat), SAMPLES)]


def key(shape: tuple[int, int], target: tuple[int, int]) -> str:
    """The name of a result."""
    return f'{shape[0]}x{shape[1]}_{target[0]}x{target[1]}'


def main(library: str) -> None:
    """Runs all shapes and targets."""
    out = {}
    for shape in SHAPES:
        for target in TARGETS:
            image, name = picture(*shape), key(shape, target)
            if library == 'openpi':
                import openpi.shared.image_tools
                import openpi_client.image_tools

                out[f'{name}_client'] = sampled(
                    openpi_client.image_tools.resize_with_pad(image, *target)
                )
                out[f'{name}_jax'] = sampled(
                    np.asarray(openpi.shared.image_tools.resize_with_pad(image, *target))
                )
            else:
                import torch
                from lerobot.policies.common.vla_utils import resize_with_pad_torch

                unit = torch.from_numpy(image)[None].float() / 255
                out[name] = sampled(resize_with_pad_torch(unit, *target)[0].numpy())
    np.savez_compressed(HERE / f'{library}.npz', **out)


if __name__ == '__main__':
    main(sys.argv[1])
