"""Optional inputs of a data set: depth maps and audio columns, chosen in the config (paper 3.1).

Shards hold depth as whole multiples of `data.depth_scale` metres, 16 bits, and 0 where there is no
reading. Nothing
averages them: images shrink to the nearest reading, and there are no statistics of depth.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Num, UInt16

from sigma_jax.data.episode import Episode
from sigma_jax.data.lerobot.language import LANGUAGE
from sigma_jax.data.shards.meta import camera_names
from sigma_jax.data.shards.plan import DataConfig
from sigma_jax.errors import UserError
from sigma_jax.processing.images import encode_depth, resize_depth

LARGEST = 2**16 - 1


def check_modalities(dataset: Any, config: DataConfig) -> None:
    """Checks the settings of depth and audio.

    Args:
      dataset: of `sources.open_source`.
      config: settings.

    Raises:
      UserError: `data.depth` or `data.audio` names nothing of its kind, or a scale is not positive.
    """
    depths, audios = getattr(dataset, 'depths', ()), getattr(dataset, 'audios', {})
    if unknown := [key for key in config.depth if key not in depths]:
        raise UserError(
            f'expected data.depth out of the single-channel image features {list(depths)}, got '
            f'{unknown}; name features of this data set, or none'
        )
    if config.audio and config.audio not in audios:
        raise UserError(
            f"expected data.audio out of the vector features {list(audios)}, got '{config.audio}'; "
            'name a column of float32 or int16 samples, or none'
        )
    for name in ('depth_scale', 'audio_rate'):
        if not 0 < getattr(config, name) < np.inf:
            raise UserError(
                f'expected data.{name} above 0, got {getattr(config, name)}; correct the config'
            )


def describe_modalities(dataset: Any, config: DataConfig) -> dict[str, Any]:
    """The fields of `Meta` on depth, audio and language; none where there are none.

    Args:
      dataset: of `sources.open_source`.
      config: settings.

    Returns:
      {field: value}.
    """
    found: dict[str, Any] = {}
    if config.depth:
        names, said = tuple(camera_names(config.depth)), getattr(dataset, 'depth_units', {})
        by_name = {name: said.get(key, '') for name, key in zip(names, config.depth, strict=True)}
        found |= {'depth_names': names, 'depth_told': by_name}
    if config.audio:
        samples, dtype = dataset.audios[config.audio]
        found |= {'audio_samples': samples, 'audio_dtype': dtype}
    if languages := getattr(dataset, 'languages', ()):
        said = (
            "each record's field 'language' holds these as JSON; prompts are made of the task alone"
        )
        found |= {'language_columns': tuple(languages), 'language_told': said}
    return found


def record_features(dataset: Any, config: DataConfig) -> dict[str, Any]:
    """The arguments of `tfds.window_features` for depth, audio and language.

    Args:
      dataset: of `sources.open_source`.
      config: settings.

    Returns:
      {argument: value}.
    """
    audio = dataset.audios[config.audio] if config.audio else None
    language = bool(getattr(dataset, 'languages', ()))
    return {'depth': camera_names(config.depth), 'audio': audio, 'language': language}


def record_fields(
    episode: Episode, rows: list[int], config: DataConfig
) -> Iterator[Mapping[str, Any]]:
    """The fields `depth`, `audio` and `language` of records.

    Args:
      episode: they are of.
      rows: ascending row numbers.
      config: which are asked for.

    Returns:
      An iterator of {field: value}.
    """
    names = camera_names(config.depth)
    depth = [episode.frames(key, rows) for key in config.depth]
    audio = episode.frames(config.audio, rows) if config.audio else None
    language = episode.frames(LANGUAGE, rows) if LANGUAGE in episode.readers else None
    for _ in rows:
        fields: dict[str, Any] = {}
        if depth:
            readings = [
                in_units(next(reader)[..., 0], config.depth_scale, episode.index)
                for reader in depth
            ]
            maps = [encode_depth(resize_depth(reading, config.image_size)) for reading in readings]
            fields['depth'] = dict(zip(names, maps, strict=True))
        if audio is not None:
            fields['audio'] = next(audio)
        if language is not None:
            fields['language'] = next(language)
        yield fields


def in_units(
    depth: Num[np.ndarray, 'h x'], scale: float, episode: int
) -> UInt16[np.ndarray, 'h x']:
    """Depth in 16 bits: whole multiples of a scale, 0 only where there is no reading.

    Args:
      depth: metres, or uint16 of an unknown unit, which stays.
      scale: metres a step.
      episode: it is of, for messages.

    Returns:
      The multiples.

    Raises:
      UserError: a distance that 16 bits do not hold.
    """
    if depth.dtype == np.uint16:
        return depth
    units = np.rint(depth.astype(np.float64) / scale)
    if units.max(initial=0) > LARGEST:
        raise UserError(
            f'expected depth up to {LARGEST * scale:g} m (65535 times data.depth_scale) in '
            f'episode {episode}, got {depth.max():g} m; raise data.depth_scale'
        )
    return np.where(depth > 0, np.maximum(units, 1), 0).astype(np.uint16)
