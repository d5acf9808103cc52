"""Our shards as `.pt` shards (`torch_shards` has the layout)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sigma_jax.data.pt.shards import LAYOUT, About, import_torch
from sigma_jax.data.shards.directory import Shards
from sigma_jax.data.shards.file_digests import file_digest
from sigma_jax.data.shards.meta import META
from sigma_jax.data.shards.records import Records
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_folder

Progress = Callable[[int, int], None]


def export(
    shards: Shards,
    out: str | Path,
    shard_size: int = 512,
    progress: Progress = lambda done, total: None,
) -> About:
    """Writes the windows of a finished preparation as `.pt` shards.

    The frozen policy's actions go along where they were computed. Images are those that the loader
    gives: decoded, at the model's resolution.

    Args:
      shards: finished.
      out: the new folder.
      shard_size: windows of a file.
      progress: called with (windows done, windows in all).

    Returns:
      The contents of its meta.json.

    Raises:
      UserError: damaged shards, `out` exists, no torch, or no room.
    """
    if shard_size < 1:
        raise UserError(f'expected a shard_size of at least 1, got {shard_size}; correct it')
    torch, total = import_torch(), shards.meta.total
    files: list[str] = []
    batch: list[dict[str, Any]] = []
    with atomic_folder(out) as folder:
        for done, sample in enumerate(_samples(shards, torch), start=1):
            batch.append(sample)
            if len(batch) == shard_size or done == total:
                files.append(f'shard_{len(files):05d}.pt')
                _save(torch, batch, folder / files[-1], Path(out))
                batch = []
            progress(done, total)
        digests = {name: file_digest(folder / name) for name in files}
        about = About(LAYOUT, shards.meta, digests)
        (folder / META).write_text(json.dumps(about.to_json(), indent=2) + '\n')
    return about


def _save(torch: Any, batch: list[dict[str, Any]], path: Path, out: Path) -> None:
    try:
        torch.save(batch, path)
    except (OSError, RuntimeError) as error:  # torch's writer has no error type of its own
        reason = str(error).splitlines()[0]
        raise UserError(
            f'expected to write {path.name} of {out}, got "{reason}"; free some room'
        ) from error


def _samples(shards: Shards, torch: Any) -> Iterator[dict[str, Any]]:
    """The dictionaries of all windows, in the order of splits and records."""
    for split in map(shards.split, SPLITS):
        if not split.windows:
            continue
        records = split.records()
        base = split.base_actions() if split.base_file.is_file() else None
        for number in range(len(records)):
            yield _sample(records, number, None if base is None else base[number], torch)


def _sample(records: Records, number: int, base: np.ndarray | None, torch: Any) -> dict[str, Any]:
    record, index, meta = records[number], records.index, records.meta
    average, largest = _l2(record.actions, record.action_mask)
    arrays = {
        'vision_inputs': record.images,
        'robot_state': record.state,
        **_actions('gt_action', record.actions, meta.chunk),
        'action_mask': record.action_mask,
    }
    if base is not None:
        arrays |= _actions('base_action', base[0], meta.chunk)
        arrays |= {'base_action_samples': base} if len(base) > 1 else {}
    return {
        **{name: torch.from_numpy(np.array(value)) for name, value in arrays.items()},
        'avg_action_l2': average,
        'max_action_l2': largest,
        'text': meta.tasks[index.text_id[number]],
        'episode_index': int(index.episode[number]),
        'frame_index': int(index.frame[number]),
    }


def _actions(name: str, trajectory: np.ndarray, chunk: int) -> dict[str, np.ndarray]:
    """The three views of a trajectory [t a] (docs/design.md, "Actions as residuals")."""
    return {
        f'{name}_vector': trajectory[0],
        f'{name}_chunk': trajectory[:chunk],
        f'{name}_trajectory': trajectory,
    }


def _l2(actions: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Mean and largest norm of the real actions, as `windows.cut_windows` has them."""
    norms = np.linalg.norm(actions[mask].astype(np.float64), axis=-1)
    return float(np.float32(norms.mean())), float(np.float32(norms.max()))
