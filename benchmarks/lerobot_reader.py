r"""LeRobot's own reader, opened and timed; runs in an environment with lerobot 0.4.4 and imports
nothing of ours.

    python benchmarks/lerobot_reader.py --root=DIR --backend=pyav --workers=2 --windows=400 \
        --size=224

Prints one line of JSON. torchvision no longer decodes video and has no build for every torch; where
its reader is missing, a stand-in over PyAV takes its place, which does what torchvision's `pyav`
backend did: open, seek to the key frame before the first wanted time, decode from there.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class VideoReader:
    """torchvision.io.VideoReader's `pyav` backend: an iterator of {'data': uint8 [3 h x], 'pts':
    seconds}.
    """

    def __init__(self, path: str, stream: str = 'video') -> None:
        import av

        self.container = av.open(path)
        self._frames: Iterator[Any] = self.container.decode(video=0)

    def seek(self, seconds: float, keyframes_only: bool = True) -> 'VideoReader':
        """Goes to the last key frame at or before `seconds`."""
        import av

        self.container.seek(round(seconds * av.time_base), backward=True, any_frame=False)
        self._frames = self.container.decode(video=0)
        return self

    def __iter__(self) -> 'VideoReader':
        return self

    def __next__(self) -> dict[str, Any]:
        import torch

        frame = next(self._frames)
        pixels = torch.as_tensor(frame.to_rgb().to_ndarray()).permute(2, 0, 1)
        return {'data': pixels, 'pts': float(frame.pts * frame.time_base)}


def to_tensor(image: Any) -> Any:
    """torchvision.transforms.ToTensor of a PIL image: float32 [c h x] in 0..1."""
    import numpy as np
    import torch

    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


def stand_in_for_torchvision() -> bool:
    """Registers the stand-in where torchvision or its video reader is missing; true where it
    did.
    """
    if importlib.util.find_spec('torchvision') is not None:
        import torchvision.io

        if hasattr(torchvision.io, 'VideoReader'):
            return False
    parts = {
        name: types.ModuleType(name)
        for name in ('torchvision', 'torchvision.io', 'torchvision.transforms')
    }
    parts['torchvision'].__dict__.update(
        io=parts['torchvision.io'],
        transforms=parts['torchvision.transforms'],
        set_video_backend=lambda name: None,
    )
    parts['torchvision.io'].__dict__['VideoReader'] = VideoReader
    parts['torchvision.transforms'].__dict__['ToTensor'] = lambda: to_tensor
    for name, module in parts.items():
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        sys.modules[name] = module
    return True


def open_lerobot(
    root: str | pathlib.Path, horizon: int, backend: str = 'pyav', **options: Any
) -> Any:
    """A LeRobotDataset whose items hold `horizon` actions from their frame on
    (`delta_timestamps`).
    """
    stand_in_for_torchvision()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    fps = json.loads((pathlib.Path(root) / 'meta/info.json').read_text())['fps']
    steps = {'action': [i / fps for i in range(horizon)]}
    return LeRobotDataset(
        'local/data', root=root, delta_timestamps=steps, video_backend=backend, **options
    )


def resize(size: int, image: Any) -> Any:
    """float [3 h x] -> [3 size size]: aspect kept, centred on black, bilinear, as LeRobot's pi0.5
    resizes.
    """
    import torch.nn.functional as F

    rows, cols = image.shape[-2:]
    ratio = max(rows / size, cols / size)
    inner = int(rows / ratio), int(cols / ratio)
    scaled = F.interpolate(image[None], size=inner, mode='bilinear', align_corners=False)
    before = (size - inner[0]) // 2, (size - inner[1]) // 2
    after = size - inner[0] - before[0], size - inner[1] - before[1]
    return F.pad(scaled, (before[1], after[1], before[0], after[0]))[0]


def payload(cameras: Sequence[str], items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What both sides deliver: images, actions, their mask, states and the task."""
    import torch

    keys = [*cameras, 'action', 'action_is_pad', 'observation.state']
    return {key: torch.stack([item[key] for item in items]) for key in keys} | {
        'task': [i['task'] for i in items]
    }


def one_thread(_: int) -> None:
    """Decoding processes that fill the cores need no threads of torch beside them."""
    import torch

    torch.set_num_threads(1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Windows a second of random access, once the workers have delivered their first batches."""
    import torch

    transform = functools.partial(resize, args.size) if args.size else None
    dataset = open_lerobot(args.root, args.horizon, args.backend, image_transforms=transform)
    starts = json.loads(pathlib.Path(args.starts).read_text())
    loader = torch.utils.data.DataLoader(
        dataset,
        sampler=starts[: args.windows + args.warm],
        batch_size=args.batch,
        num_workers=args.workers,
        worker_init_fn=one_thread,
        collate_fn=functools.partial(payload, dataset.meta.camera_keys),
    )
    windows, begun = 0, 0.0
    for n, batch in enumerate(loader):
        if n * args.batch < args.warm:
            begun = time.perf_counter()
            continue
        windows += len(batch['task'])
    seconds = time.perf_counter() - begun
    shape = list(batch[dataset.meta.camera_keys[0]].shape)
    versions = {name: importlib.metadata.version(name) for name in ('lerobot', 'torch', 'av')}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions['torchcodec'] = importlib.metadata.version('torchcodec')
    return {
        'windows_per_s': windows / seconds,
        'windows': windows,
        'pictures': shape,
        'versions': versions,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--root', required=True)
    parser.add_argument(
        '--starts', required=True, help='JSON list of frame numbers, in the order of access'
    )
    parser.add_argument('--backend', default='pyav', choices=('pyav', 'torchcodec'))
    for name, value in (
        ('horizon', 16),
        ('size', 224),
        ('workers', 2),
        ('batch', 8),
        ('windows', 320),
        ('warm', 32),
    ):
        parser.add_argument(f'--{name}', type=int, default=value)
    json.dump(measure(parser.parse_args()), sys.stdout)


if __name__ == '__main__':
    main()
