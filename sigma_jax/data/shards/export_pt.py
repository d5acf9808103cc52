"""Our shards as `.pt` shards (`torch_shards` has the layout)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sigma_jax.data.pt.shards import LAYOUT, import_torch
from sigma_jax.data.shards.digests import file_digest
from sigma_jax.data.shards.meta import read_meta
from sigma_jax.data.shards.records import Records, read_baselines
from sigma_jax.data.shards.tfds import SPLITS
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_folder

Progress = Callable[[int, int], None]


def export(
    shards_dir: str | Path,
    out: str | Path,
    shard_size: int = 512,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Writes the windows of a finished preparation to the new folder `out`, and returns its
    meta.json.

    The frozen policy's actions go along where they were computed. Pictures are those that the
    loader gives: decoded, at the model's resolution. `progress` is called with (windows done,
    windows in all).

    Raises:
      UserError: no finished shards, `out` exists, no torch, or no room.
    """
    if shard_size < 1:
        raise UserError(f'Expected a shard_size of at least 1, got {shard_size}; correct it.')
    meta, torch = read_meta(shards_dir), import_torch()
    total = sum(meta['windows'].values())
    files: list[str] = []
    batch: list[dict[str, Any]] = []
    with atomic_folder(out) as folder:
        for done, sample in enumerate(_samples(Path(shards_dir), meta, torch), start=1):
            batch.append(sample)
            if len(batch) == shard_size or done == total:
                files.append(f'shard_{len(files):05d}.pt')
                _save(torch, batch, folder / files[-1], Path(out))
                batch = []
            progress(done, total)
        about = {
            'layout': LAYOUT,
            'shards': meta,
            'files': {name: file_digest(folder / name) for name in files},
        }
        (folder / 'meta.json').write_text(json.dumps(about, indent=2) + '\n')
    return about


def _save(torch: Any, batch: list[dict[str, Any]], path: Path, out: Path) -> None:
    try:
        torch.save(batch, path)
    except (OSError, RuntimeError) as error:  # torch's writer has no error type of its own
        reason = str(error).splitlines()[0]
        raise UserError(
            f'Expected to write {path.name} of {out}, got "{reason}"; free some room.'
        ) from error


def _samples(directory: Path, meta: dict[str, Any], torch: Any) -> Iterator[dict[str, Any]]:
    """The dictionaries of all windows, in the order of splits and records."""
    for split in SPLITS:
        if not meta['windows'][split]:
            continue
        records = Records(directory, split)
        shape = (len(records), meta['horizon'], len(meta['action_names']))
        known = (directory / f'baselines-{split}.npz').is_file()
        base = read_baselines(directory, split, shape) if known else None
        for number in range(len(records)):
            yield _sample(records, number, None if base is None else base[number], torch)


def _sample(records: Records, number: int, base: np.ndarray | None, torch: Any) -> dict[str, Any]:
    record, index, meta = records[number], records.index, records.meta
    average, largest = _l2(record.actions, record.action_mask)
    arrays = {
        'vision_inputs': record.images,
        'robot_state': record.state,
        **_actions('gt_action', record.actions, meta['chunk']),
        'action_mask': record.action_mask,
    }
    if base is not None:
        arrays |= _actions('base_action', base[0], meta['chunk'])
        arrays |= {'base_action_samples': base} if len(base) > 1 else {}
    return {
        **{name: torch.from_numpy(np.array(value)) for name, value in arrays.items()},
        'avg_action_l2': average,
        'max_action_l2': largest,
        'text': meta['tasks'][index.text_id[number]],
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
