"""Frozen features (docs/design.md, "Frozen features"): SigLIP's tokens and text embeddings of every
window, computed once, kept on disk.

They lie beside the shards (`data/loader/cached_features.py`) with the digests of base and data;
those of another base, other data or another setting are made anew. They have the dtype that the
policy computes in, so that a file rounds nothing. A training that reads them differs from one that
computes them by float32's rounding (1e-7 of a feature): which products XLA takes depends on the
number of windows in a batch. So a run keeps to one way; `Checkpoints` refuses to change it.
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sigma_jax.convert.load_base import Base
from sigma_jax.data.loader.cached_features import DTYPES, FILE, Features
from sigma_jax.data.shards.directory import Shards, Split
from sigma_jax.errors import UserError
from sigma_jax.files import atomic_write, writer_lock
from sigma_jax.training.config import RunConfig
from sigma_jax.types import Observation, to_batch

SCHEMA = 1
BATCH = 32  # windows at a time; divides FILE
Encode = Callable[[Observation], Observation]


def check(config: RunConfig) -> bool:
    """Whether a run reads cached features.

    Args:
      config: of the run.

    Returns:
      Whether it does.

    Raises:
      UserError: it is to, and could not.
    """
    if not config.features:
        return False
    if config.kind.trains_policy or config.sigma.vision_encoder != 'backbone':
        raise UserError(
            "config.features='cache' expects objective 'sigma' with sigma.vision_encoder "
            "'backbone', whose image encoder is frozen, got another; set config.features=''"
        )
    if config.loader.augment:
        raise UserError(
            "config.features='cache' expects images that stay as they are, got "
            'loader.augment=True; switch one off'
        )
    return True


def identity(config: RunConfig, base: Base, shards: Shards) -> dict[str, Any]:
    """What two caches must share to hold the same numbers.

    Args:
      config: of the run.
      base: the policy.
      shards: the data.

    Returns:
      For JSON.
    """
    tokenizer = pathlib.Path(config.tokenizer)
    return {
        'schema': SCHEMA,
        'base_digest': base.digest,
        'data_digest': shards.digest,
        'dtype': base.config.dtype,
        'quant': config.to_dict()['quant'],
        'text': config.sigma.text,
        'tokenizer': hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        if tokenizer.is_file()
        else str(tokenizer),
        'image_padding': base.policy.image_padding,
    }


def prepare(
    fingerprint: Mapping[str, Any],
    split: Split,
    encode: Encode,
    batches: Callable[[int], Iterable[Mapping[str, np.ndarray]]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """The features of a split; what is missing is computed, and where nothing is, no data are read.

    Args:
      fingerprint: from `identity`; whatever lies there with another one is removed.
      split: of the shards.
      encode: fills in what the frozen policy makes of an observation [b 1 ...].
      batches: `batches(b)` gives all windows in record order as the loader does, leaves [b 1 ...],
        padding last.
      progress: called with (windows done, windows in all).

    Returns:
      The features.

    Raises:
      UserError: another process makes them.
    """
    features = Features(split.shards.features, split.name, str(fingerprint['dtype']))
    if features.dtype not in DTYPES:
        raise UserError(
            f'config.features: expected a policy in {" or ".join(DTYPES)}, got {features.dtype}; '
            "set config.features=''"
        )
    windows = split.windows
    parts = [*features.parts(windows), features.texts]
    if features.fingerprint() == fingerprint and all(path.is_file() for path in parts):
        return features
    with writer_lock(features.folder, 'training, which makes the features there'):
        if features.fingerprint() != fingerprint:
            for path in features.folder.glob(f'{split.name}[-.]*'):
                path.unlink()
            atomic_write(features.record, json.dumps(fingerprint, indent=1))
        _write(features, windows, encode, batches, progress)
    return features


def _write(features: Features, windows: int, encode: Encode, batches, progress) -> None:
    """All files that are not there; what is there is whole."""
    held: list[np.ndarray] = []
    tasks: dict[int, Observation] = {}
    for first, arrays in zip(range(0, windows, BATCH), batches(BATCH), strict=False):
        observation = to_batch(arrays).observation
        for n, task in enumerate(arrays['text_id'][:, 0]):
            tasks.setdefault(int(task), jax.tree.map(lambda x, n=n: x[n : n + 1], observation))
        real = arrays['record'][:, 0] >= 0
        part, done = features.part(first // FILE), first + int(real.sum())
        if not part.is_file():
            held.append(np.asarray(encode(observation).features)[real, 0])
            if done % FILE == 0 or done == windows:
                _save(part, features.encode(np.concatenate(held)))
                held = []
        progress(done, windows)
    embedded = {task: np.asarray(encode(one).text_embeddings)[0, 0] for task, one in tasks.items()}
    nothing = np.zeros_like(next(iter(embedded.values())))  # a task that only other splits have
    table = [embedded.get(n, nothing) for n in range(max(embedded) + 1)]
    _save(features.texts, np.stack(table).astype(np.float32))


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    atomic_write(path, buffer.getvalue())
