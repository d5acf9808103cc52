"""Depth maps of a LeRobot data set: 16-bit or float images in parquet cells, and 12-bit codes in
video (LeRobot 0.6).

Where the data set states the unit, maps come out in metres, float32; 16-bit ones without a unit as
they are. A reading
of 0 is none: LeRobot keeps it as 0 in images and, in video, as the lowest code, which its own
reader turns into the nearest distance of the range (1 cm); here it is 0 again. So are NaN and
infinity.
"""

import dataclasses
import io
import math
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Num, UInt16
from PIL import Image

from sigma_jax.data.lerobot.cells import cell_source, check_size, reason_of, upright
from sigma_jax.data.lerobot.schema import image_size_of
from sigma_jax.errors import UserError

# Pillow's names of 16-bit grey (older ones open it as 32-bit), of float32
MODES = ('I;16', 'I;16B', 'I;16L', 'I', 'F')
UNITS = {'m': 1.0, 'mm': 0.001}  # metres
CODES = ('gray12le', 'gray12be')
TOP = 2**12 - 1
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
    MemoryError,
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Feature = Mapping[str, Any]


def depth_keys(features: Mapping[str, Feature]) -> tuple[str, ...]:
    """Features that hold depth: images of one channel, and what is marked as a depth map and is no
    colour image.

    Args:
      features: of info.json.

    Returns:
      Their keys.
    """
    return tuple(
        key
        for key, value in features.items()
        if value.get('dtype') in ('image', 'video') and _is_depth(value)
    )


def _is_depth(feature: Feature) -> bool:
    first, _, last = feature['shape']
    one = last == 1 or (first == 1 and last not in (3, 4))
    marked = bool(_info(feature, 'is_depth_map') or _info(feature, 'video.is_depth_map'))
    # gray10le to gray16le; eight bits are just gray
    codes = str(_info(feature, 'video.pix_fmt')).startswith('gray1')
    return (one and feature['dtype'] == 'image') or (marked and (one or codes))


def _info(feature: Feature, key: str) -> Any:
    parts = [feature.get(name) for name in ('info', 'video_info')]
    return next(
        (part[key] for part in parts if isinstance(part, Mapping) and part.get(key) is not None),
        None,
    )


def stated_unit(feature: Feature, key: str) -> float | None:
    """Metres a reading, where the data set says so.

    Args:
      feature: of info.json.
      key: of the feature, for messages.

    Returns:
      1 or 0.001; None where nothing is said.

    Raises:
      UserError: a unit that is neither 'm' nor 'mm'.
    """
    unit = _info(feature, 'depth_unit')
    if unit is not None and unit not in UNITS:
        raise UserError(
            f"expected depth_unit 'm' or 'mm' for '{key}' in meta/info.json, got {unit!r}; "
            'correct it there'
        )
    return None if unit is None else UNITS[unit]


def describe(feature: Feature, key: str) -> str:
    """What a map of this feature holds, for meta.json.

    Args:
      feature: of info.json.
      key: of the feature, for messages.

    Returns:
      In words.
    """
    if feature['dtype'] == 'video':
        return str(Quantiser.of(feature, key))
    unit = _info(feature, 'depth_unit')
    return f'readings in {unit}' if unit else 'readings in units of depth_scale'


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """How 12-bit codes stand for metres: evenly from `depth_min` to `depth_max`, or in log(metres +
    `shift`).

    The defaults are LeRobot's, for data sets that do not say.
    """

    depth_min: float = 0.01
    depth_max: float = 10.0
    shift: float = 3.5
    use_log: bool = True

    @classmethod
    def of(cls, feature: Feature, key: str) -> 'Quantiser':
        """The quantiser that a feature states.

        Args:
          feature: of info.json.
          key: of the feature, for messages.

        Returns:
          The quantiser.

        Raises:
          UserError: its numbers make no range.
        """
        stated = {
            field.name: _info(feature, f'video.{field.name}') for field in dataclasses.fields(cls)
        }
        known_values = {name: value for name, value in stated.items() if value is not None}
        numbers = [value for name, value in known_values.items() if name != 'use_log']
        plain = all(
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
            for x in numbers
        )
        one = (
            cls(**known_values)
            if plain and isinstance(known_values.get('use_log', True), bool)
            else None
        )
        if (
            one is None
            or not 0 <= one.depth_min < one.depth_max
            or (one.use_log and one.depth_min + one.shift <= 0)
        ):
            raise UserError(
                'expected 0 <= depth_min < depth_max (metres), and depth_min + shift above 0, '
                f"for '{key}' in meta/info.json, got {known_values}; correct it there"
            )
        return one

    def metres(self, codes: Int[np.ndarray, 'h x']) -> Float[np.ndarray, 'h x']:
        """Distances of 12-bit codes, float32; 0 for code 0.

        Args:
          codes: 12 bits each.

        Returns:
          Metres.
        """
        low, high = (
            math.log(x + self.shift) if self.use_log else x
            for x in (self.depth_min, self.depth_max)
        )
        steps = codes.astype(np.float32) * np.float32((high - low) / TOP) + np.float32(low)
        distance = np.exp(steps) - np.float32(self.shift) if self.use_log else steps
        return np.where(
            codes == 0,
            np.float32(0),
            np.clip(distance, self.depth_min, self.depth_max).astype(np.float32),
        )

    def __str__(self) -> str:
        how = f'logarithmic, shift {self.shift:g} m' if self.use_log else 'linear'
        return f'12-bit codes of {self.depth_min:g} to {self.depth_max:g} m, {how}'


def read_codes(frame: av.VideoFrame, place: str) -> UInt16[np.ndarray, 'h x']:
    """The codes of a video's frame.

    Args:
      frame: decoded.
      place: of the frame, for messages.

    Returns:
      12 bits each.

    Raises:
      UserError: any other kind of image.
    """
    if frame.format.name not in CODES:
        raise UserError(
            f'expected 12-bit depth (gray12le) in {place}, got {frame.format.name}; take it out '
            'of data.depth'
        )
    return frame.to_ndarray(format='gray12le')


def read_cells(
    cells: pa.ChunkedArray, feature: Feature, key: str, name: str, rows: Sequence[int], root: Path
) -> Iterator[Num[np.ndarray, 'h x 1']]:
    """Yields an episode's depth maps.

    Args:
      cells: of the column.
      feature: of info.json.
      key: of the feature.
      name: whose maps they are, for messages.
      rows: ascending row numbers.
      root: of the data set.

    Returns:
      An iterator of maps, in the feature's unit.

    Raises:
      UserError: no image, a damaged one, one of another size, neither 16 bits nor float, or
        distances below 0.
    """
    unit = stated_unit(feature, key)
    for row in rows:
        values = _decode(cells[row].as_py(), image_size_of(feature), f'{name}, frame {row}', root)
        yield _in_metres(values, unit)[..., None]


def _in_metres(values: Num[np.ndarray, 'h x'], unit: float | None) -> Num[np.ndarray, 'h x']:
    if unit is None and values.dtype == np.uint16:
        return values
    # floats without a unit are metres, as LeRobot takes them when it records
    return np.nan_to_num(values * np.float64(unit or 1.0), posinf=0, neginf=0).astype(np.float32)


def _decode(cell: Any, size: tuple[int, int], name: str, root: Path) -> Num[np.ndarray, 'h x']:
    """The readings of a cell, uint16 or float32."""
    try:
        alone = cell['bytes'] is None and cell.get('path')
        source = cell_source(cell, root, name) if alone else io.BytesIO(cell['bytes'])
        with (
            warnings.catch_warnings(action='error'),
            Image.open(source, formats=('PNG', 'TIFF')) as image,
        ):
            _check(image, size, name)
            values = np.asarray(upright(image, size, name, 'depth'))
    except UserError:
        raise
    except (*_DAMAGE, *_BOMBS) as error:
        raise UserError(
            f'expected a depth image as PNG in {name} (or TIFF), got "{reason_of(error)}"; the '
            'file is damaged, fetch it again'
        ) from error
    finite = values[np.isfinite(values)]
    if finite.min(initial=0) < 0:
        raise UserError(
            f'expected depth of 0 or more in {name}, got {finite.min():g}; record it again'
        )
    if values.dtype.kind == 'f':
        return values.astype(np.float32)
    if values.max() >= 2**16:
        raise UserError(
            f'expected depth of 0 to 65535 in {name}, got {values.max()}; record it '
            'again as 16 bits'
        )
    return values.astype(np.uint16)


def _check(image: Image.Image, size: tuple[int, int], name: str) -> None:
    """Looks at the header only: nothing is decoded yet, and it may lie on its side."""
    check_size(image, (size, size[::-1]), name, 'depth')
    if image.mode in ('L', 'P'):
        raise UserError(
            f'expected 16-bit depth in {name}, got an image of mode {image.mode}; only 16 bits '
            'and floats hold distances, take it out of data.depth or, to read it as a camera, '
            'give it three channels by its shape in meta/info.json'
        )
    if image.mode not in MODES:
        raise UserError(
            f'expected 16-bit depth in {name}, got an image of mode {image.mode}; only 16 bits '
            'and floats hold distances, take it out of data.depth'
        )
