"""Windows a second: our shards and loader beside LeRobotDataset and torch's DataLoader, on the same
data set.

    python benchmarks/loader.py --folder=/tmp/loader --lerobot-python=PATH

The data set (2 cameras 480 x 640, AV1 as LeRobot encodes it: a key frame every second frame, crf
30) and its shards are made in `--folder` unless they lie there already. Both sides deliver, in
random order, one frame of both cameras at 224 pixels, 16 actions, state and task, with two workers.
`--lerobot-python` is an interpreter with lerobot 0.4.4 (lerobot_reader.py); without it only our
side runs.
"""

import argparse
import json
import pathlib
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from configs import data_so101
from sigma_jax.data.lerobot.tables import Recording
from sigma_jax.data.lerobot.writer import LeRobotWriter
from sigma_jax.data.loader.loader import make_loader
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import Contents, shards_processor
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.video.encode import VideoSettings
from sigma_jax.processing.tokenizer import load_tokenizer

HERE = pathlib.Path(__file__).parent
HEIGHT, WIDTH, FPS, SIZE, HORIZON, WORKERS = 480, 640, 30, 224, 16, 2
CAMERAS, JOINTS = ('up', 'side'), tuple(f'joint_{i}.pos' for i in range(6))
VIDEO = VideoSettings(gop=2, crf=30, preset='12')  # lerobot 0.4.4's own settings
DECODING = ('shards, 2 threads', 'shards, 2 processes')  # every window anew
TARGET_RATIO, TARGET_IMAGES = 10.0, 200.0


def texture(rng: np.random.Generator) -> np.ndarray:
    """A colourful surface larger than the image, with detail of every size: uint8 [720 960 3]."""
    total = np.zeros((720, 960, 3))
    for cell in (120, 60, 24, 8, 2):
        coarse = rng.normal(size=(720 // cell, 960 // cell, 3))
        total += np.kron(coarse, np.ones((cell, cell, 1))) * cell**0.5
    return np.clip(128 + 40 * total / total.std(), 0, 255).astype(np.uint8)


def film(rng: np.random.Generator, surface: np.ndarray, length: int) -> np.ndarray:
    """A camera gliding over `surface` behind a moving block, with sensor noise: uint8 [length 480
    640 3].
    """
    phase, frames = rng.uniform(0, 6, 4), np.empty((length, HEIGHT, WIDTH, 3), np.uint8)
    noise = rng.integers(0, 5, (4, HEIGHT, WIDTH, 3)).astype(np.uint8)
    for n in range(length):
        swing = np.sin(n / np.array([17, 23, 11, 13]) + phase)
        top, left = int(120 + 115 * swing[0]), int(160 + 150 * swing[1])
        view = surface[top : top + HEIGHT, left : left + WIDTH] // 8 * 7
        row, col = int(200 + 150 * swing[2]), int(280 + 200 * swing[3])
        view[row : row + 60, col : col + 60] = (210, 60, 140)
        frames[n] = view + noise[n % 4]
    return frames


def make_source(out: pathlib.Path, episodes: int, length: int) -> pathlib.Path:
    """A LeRobot v3.0 data set of `episodes` x `length` frames."""
    rng = np.random.default_rng(0)
    surface = texture(rng)
    with LeRobotWriter(
        out, Recording(JOINTS, dict.fromkeys(CAMERAS, (HEIGHT, WIDTH)), FPS), VIDEO
    ) as writer:
        for n in range(episodes):
            walk = np.cumsum(rng.normal(size=(length + 1, len(JOINTS))), axis=0).astype(np.float32)
            films = {camera: film(rng, surface, length) for camera in CAMERAS}
            writer.add_episode(walk[:-1], walk[1:], films, f'pick up brick {n % 2}')
    return out


def make_shards(source: pathlib.Path, out: pathlib.Path, episodes: int) -> pathlib.Path:
    """Every window of the data set, all in the train split."""
    settings = data_so101.get_config().data.to_dict() | {
        'source': str(source),
        'image_size': SIZE,
        'horizon': HORIZON,
        'stride': 1,
        'min_motion': 0.0,
        'train_episodes': tuple(range(episodes)),
    }
    prepare(DataConfig.from_settings(settings), out)
    return out


def starts(episodes: int, length: int) -> list[int]:
    """Frame numbers of every window, in random order."""
    whole = np.arange(episodes)[:, None] * length + np.arange(length - HORIZON + 1)
    return np.random.default_rng(1).permutation(whole.ravel()).tolist()


def ours(
    shards: pathlib.Path, workers: int, windows: int, batch: int, warm: int, **options: Any
) -> float:
    """Windows a second, once the first `warm` have come."""
    tokenizer = load_tokenizer(data_so101.get_config().data.tokenizer)
    opened = open_shards(shards)
    loader = make_loader(
        opened.split('train'),
        shards_processor(opened, tokenizer),
        Order(batch, seed=1, shuffle=True, num_epochs=None, drop_remainder=True),
        Contents(**options),
        workers,
    )
    for _ in range(-(-warm // batch)):
        next(loader)
    begun, counted = time.perf_counter(), 0
    while counted < windows:
        counted += next(loader)['mask'].size
    return counted / (time.perf_counter() - begun)


def theirs(
    python: str, source: pathlib.Path, args: argparse.Namespace, backend: str, size: int
) -> dict[str, Any]:
    """What LeRobot's side reports."""
    order = args.folder / 'starts.json'
    order.write_text(json.dumps(starts(args.episodes, args.frames)))
    numbers = {
        'workers': WORKERS,
        'batch': args.batch,
        'windows': args.lerobot_windows,
        'warm': args.warm,
    }
    options = {
        'root': source,
        'starts': order,
        'backend': backend,
        'size': size,
        'horizon': HORIZON,
    } | numbers
    command = [python, str(HERE / 'lerobot_reader.py'), *(f'--{k}={v}' for k, v in options.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(
    args: argparse.Namespace, source: pathlib.Path, shards: pathlib.Path
) -> Iterator[tuple[str, float]]:
    """(what, windows a second), LeRobot before and after ours, so that a change of the machine
    shows.
    """
    python = args.lerobot_python
    for backend in args.backends if python else ():
        yield (
            f'LeRobotDataset, {backend}',
            theirs(python, source, args, backend, SIZE)['windows_per_s'],
        )
    for workers in (0, WORKERS):
        where = f'{workers} processes' if workers else '2 threads'
        yield f'shards, {where}', ours(shards, workers, args.windows, args.batch, args.warm)
    epoch = len(starts(args.episodes, args.frames))
    yield (
        'shards, kept decoded in memory',
        ours(shards, 0, args.windows, args.batch, epoch, cache=True),
    )
    for backend in args.backends if python else ():
        yield (
            f'LeRobotDataset, {backend}, again',
            theirs(python, source, args, backend, SIZE)['windows_per_s'],
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--folder', type=pathlib.Path, required=True)
    parser.add_argument('--lerobot-python')
    parser.add_argument('--backends', nargs='+', default=['pyav'], choices=('pyav', 'torchcodec'))
    defaults = {
        'episodes': 20,
        'frames': 100,
        'batch': 8,
        'warm': 64,
        'windows': 8000,
        'lerobot_windows': 640,
    }
    for name, value in defaults.items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=value)
    args = parser.parse_args()
    source, shards, console = args.folder / 'source', args.folder / 'shards', Console()
    if not source.exists():
        make_source(source, args.episodes, args.frames)
    make_shards(source, shards, args.episodes)
    found = dict(rows(args, source, shards))
    table = Table('', 'windows/s', f'{SIZE}-px images/s')
    for name, speed in found.items():
        table.add_row(name, f'{speed:.0f}', f'{speed * len(CAMERAS):.0f}')
    console.print(table)
    best = max(found[name] for name in DECODING)
    console.print(f'decoding: {best * len(CAMERAS):.0f} images/s (wanted {TARGET_IMAGES:.0f})')
    for backend in args.backends if args.lerobot_python else ():
        other = max(speed for name, speed in found.items() if backend in name)
        console.print(
            f'ratio to LeRobotDataset, {backend}: {best / other:.1f} (wanted {TARGET_RATIO:.0f})'
        )


if __name__ == '__main__':
    main()
