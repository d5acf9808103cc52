"""Windows as the paper's `shard_00000.pt`, to be exchanged with users of PyTorch (4.1).

The paper names the entries of a sample, not the container; this layout is ours. A folder holds
`shard_00000.pt`, `shard_00001.pt`, ... and meta.json. A shard is a list of dictionaries, one a
window, in the order of train, calibration, test, episode and frame:

    vision_inputs          uint8 [i h w 3], the views at the window's first frame, RGB
    robot_state            float32 [p], raw robot units
    gt_action_vector       float32 [a], the first action
    gt_action_chunk        float32 [c a], the first c actions
    gt_action_trajectory   float32 [t a], all actions
    avg_action_l2          float, mean Euclidean norm of the actions
    max_action_l2          float, the largest
    text                   str, the instruction
    base_action_vector, base_action_chunk, base_action_trajectory
                           the same of the frozen policy's first draw, if any
    base_action_samples    float32 [n t a], all its draws, if there are several
    action_mask            bool [t], false on padding after an episode's end
    episode_index, frame_index    int

`torch.load(file, weights_only=True)` reads it. Files of others are read as well:
`data.torch_shards.keys` maps our names to theirs, `channels_first` says that their images are [i
3 h w]; only `vision_inputs`, `robot_state`, `gt_action_trajectory` and `text` must be there. torch
is an extra, and at least 2.6: before, weights_only let code run (CVE-2025-32434).
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sigma_jax.data.pt.safety import check_pickle
from sigma_jax.data.shards.meta import META, Meta
from sigma_jax.errors import UserError

PATTERN = 'shard_*.pt'
LAYOUT = 1
NEEDED = ('vision_inputs', 'robot_state', 'gt_action_trajectory', 'text')
OPTIONAL = (
    'base_action_trajectory',
    'base_action_samples',
    'action_mask',
    'episode_index',
    'frame_index',
)
TORCH = (2, 6)


@dataclasses.dataclass(frozen=True)
class TorchSettings:
    """The `data.torch_shards` part of a config."""

    fps: float = 0.0  # frames a second, where there is no meta.json to say it
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)  # {our entry: theirs}
    channels_first: bool = False


@dataclasses.dataclass(frozen=True)
class TorchWindow:
    """A window of a shard; `episode` and `frame` are -1 where the shard does not say."""

    images: UInt8[np.ndarray, 'i h x 3']
    state: Float[np.ndarray, ' p']
    actions: Float[np.ndarray, 't a']
    action_mask: Bool[np.ndarray, ' t']
    text: str
    base: Float[np.ndarray, 'n t a'] | None
    episode: int
    frame: int


def import_torch() -> Any:
    """The module torch.

    Returns:
      The module.

    Raises:
      UserError: it is missing, or too old to read safely.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            'expected the package torch for .pt shards, got none installed; pip install '
            "'sigma_jax[torch]'"
        ) from error
    if tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2]) < TORCH:
        raise UserError(
            f'expected torch 2.6 or newer, got {torch.__version__}, whose weights_only lets code '
            'run; upgrade torch'
        )
    return torch


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder, in order.

    Args:
      folder: of `shard_*.pt`.

    Returns:
      Their paths.

    Raises:
      UserError: there is none.
    """
    files = sorted(folder.glob(PATTERN))
    if not files:
        raise UserError(f'expected {PATTERN} in {folder}, got none; name a folder of shards')
    return files


@dataclasses.dataclass(frozen=True)
class About:
    """meta.json beside the shards; `shards` is that of the preparation they were made of."""

    layout: int
    shards: Meta
    files: Mapping[str, str]  # {name: sha256}

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {'layout': self.layout, 'shards': self.shards.to_json(), 'files': dict(self.files)}


def read_about(folder: Path) -> About | None:
    """meta.json as `export_pt.export` writes it.

    Args:
      folder: of `shard_*.pt`.

    Returns:
      Its contents; None where there is none, or one of another origin.

    Raises:
      UserError: it is damaged.
    """
    path = folder / META
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(
            f'expected JSON in {path}, got "{error}"; copy it again, or remove it'
        ) from error
    if not isinstance(found, dict) or found.get('layout') != LAYOUT:
        return None
    shards = Meta.from_json(found.get('shards'), folder)
    return About(LAYOUT, shards, found.get('files', {}))


def read_windows(
    folder: str | Path, settings: TorchSettings = TorchSettings()
) -> Iterator[TorchWindow]:
    """Yields the windows of all shards in order; one shard at a time is in memory.

    Args:
      folder: of `shard_*.pt`.
      settings: names and units.

    Returns:
      An iterator of windows.

    Raises:
      UserError: no shards, no torch, a file with anything but plain contents, entries missing or of
        a wrong shape.
    """
    for path in list_shards(Path(folder)):
        yield from read_shard(path, settings)


def read_shard(path: Path, settings: TorchSettings = TorchSettings()) -> list[TorchWindow]:
    """The windows of one shard.

    Args:
      path: of the file.
      settings: names and units.

    Returns:
      Its windows.

    Raises:
      UserError: as `read_windows`.
    """
    check_pickle(path)
    torch = import_torch()
    try:
        samples = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # unpickling errors have no common base
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f'expected a readable shard at {path}, got "{reason[0]}"; copy it again'
        ) from error
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise UserError(
            f'expected a list of dictionaries in {path}, got '
            f'{type(samples).__name__}; save it as one'
        )
    limit = path.stat().st_size
    return [
        _Sample(sample, settings, f'sample {n} of {path}', limit).window()
        for n, sample in enumerate(samples)
    ]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A dictionary of a shard, on its way to a window; no tensor in it may claim more than `limit`
    bytes.
    """

    entries: Mapping[Any, Any]
    settings: TorchSettings
    where: str
    limit: int

    def window(self) -> TorchWindow:
        """The window, its shapes and types checked."""
        images, state, actions, text = (self._entry(name) for name in NEEDED)
        base, samples, mask, episode, frame = (self._entry(name) for name in OPTIONAL)
        images = images[None] if np.ndim(images) == 3 else images
        if self.settings.channels_first and np.ndim(images) == 4:
            images = np.moveaxis(images, 1, -1)
        base = samples if samples is not None else None if base is None else base[None]
        mask = np.ones(np.shape(actions)[:1], bool) if mask is None else mask
        self._check(images, state, actions, mask, text, base)
        place = [-1 if at is None else int(at) for at in (episode, frame)]
        return TorchWindow(np.ascontiguousarray(images), state, actions, mask, text, base, *place)

    def _entry(self, name: str) -> Any:
        """An entry under its mapped name, tensors as arrays; None where an optional one is
        missing.
        """
        key = self.settings.keys.get(name, name)
        if key not in self.entries:
            if name not in NEEDED:
                return None
            known = sorted(map(str, self.entries))
            raise UserError(
                f"expected '{key}' in {self.where}, got {known}; map the names in "
                'data.torch_shards.keys'
            )
        value = self.entries[key]
        if not hasattr(value, 'numpy'):
            return value
        # a step of 0 from number to number claims any size
        if value.numel() * value.element_size() > self.limit:
            raise UserError(
                f"expected the numbers of '{key}' in {self.where}, got {list(value.shape)}, more "
                'than the file holds; save it again'
            )
        return (value.float() if value.is_floating_point() else value).numpy()

    def _check(
        self, images: Any, state: Any, actions: Any, mask: Any, text: Any, base: Any
    ) -> None:
        shapes = [np.shape(value) for value in (images, state, actions, mask)]
        fits = (
            tuple(map(len, shapes)) == (4, 1, 2, 1)
            and shapes[0][3] == 3
            and shapes[3] == shapes[2][:1]
        )
        fits = (
            fits and all(size > 0 for shape in shapes for size in shape) and isinstance(text, str)
        )
        fits = fits and (base is None or (np.ndim(base) == 3 and np.shape(base)[1:] == shapes[2]))
        kinds = [getattr(value, 'dtype', type(value)) for value in (images, state, actions, mask)]
        if not (
            fits
            and kinds[0] == np.uint8
            and kinds[1:3] == [np.float32] * 2
            and kinds[3] == np.bool_
        ):
            raise UserError(
                'expected uint8 images [i h w 3], state [p], actions [t a], mask [t] and a '
                f'text in {self.where}, got {list(map(list, shapes))} of {list(map(str, kinds))} '
                f'and {type(text).__name__}; save them so, or set '
                'data.torch_shards.channels_first'
            )
