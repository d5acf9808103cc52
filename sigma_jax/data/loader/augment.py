"""Augmentation of training images as openpi's: crop, rotation and colour, numpy and Pillow only.

openpi (models/model.py, `preprocess_observation`) calls augmax 0.4.1 on the padded images at the
model's resolution. Views whose name contains 'wrist' keep their geometry; colours change in all.
Two of the values are not in openpi's call
but in what augmax makes of it: a hue jitter of 0.1 that nobody set, and a saturation jitter of 0.5
that is drawn and dropped.
"""

import dataclasses
import math
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image

from sigma_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How far images may change.

    Raises:
      UserError: a crop outside 0..1, a rotation over 45 degrees, or an amount outside 0..1.
    """

    crop: float = 0.95  # of the side that is kept, before it is stretched back
    rotation: float = 5.0  # degrees to either side
    brightness: float = 0.3
    contrast: float = 0.4
    hue: float = 0.1  # turns (augmax's default)
    saturation: float = 0.0  # openpi asks for 0.5, which augmax computes and drops
    colour_share: float = 0.5  # of the images whose colours change (augmax's default)
    fixed: str = 'wrist'  # part of the name of views that are neither cropped nor turned

    def __post_init__(self) -> None:
        amounts = (self.brightness, self.contrast, self.hue, self.saturation, self.colour_share)
        if not (
            0 < self.crop <= 1 and 0 <= self.rotation <= 45 and all(0 <= x <= 1 for x in amounts)
        ):
            raise UserError(
                'expected a crop above 0, up to 45 degrees and other amounts of 0 to 1, got '
                f'{self}; correct them'
            )


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a pixel comes from: scale * R(angle) * (its place from the centre) + shift, in pixels
    (down, across).
    """

    scale: float
    angle: float
    shift: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Colours:
    """Amounts drawn for one group of views; `applied` false leaves them as they are."""

    applied: bool
    brightness: float
    contrast: float
    hue: float
    saturation: float


@dataclasses.dataclass(frozen=True)
class Augment(grain.transforms.RandomMap):
    """Changes the images of a run of windows [g i h x 3], and its depth maps with them.

    One draw a run, so that consecutive windows show one scene (ours; openpi has no runs). The views
    share a draw, as in openpi, but those that keep their geometry have colours of their own.
    """

    config: AugmentConfig
    cameras: tuple[str, ...]
    depths: tuple[str, ...] = ()

    def random_map(
        self, element: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Replaces `images` and `depth`; everything else stays.

        Args:
          element: windows of a sequence, [g ...].
          rng: of this element.

        Returns:
          The element.
        """
        images = element['images']
        geometry = sample_geometry(self.config, images.shape[2], rng)
        colours, others = sample_colours(self.config, rng), sample_colours(self.config, rng)
        out = np.empty_like(images)
        for i, name in enumerate(self.cameras):
            still = self.config.fixed in name
            for g, view in enumerate(images[:, i]):
                moved = view if still else move(view, geometry)
                out[g, i] = recolour(moved, others if still else colours)
        changed = {'images': out}
        if self.depths:
            changed['depth'] = self._depth(element['depth'], geometry)
        return {**element, **changed}

    def _depth(self, depth: np.ndarray, geometry: Geometry) -> np.ndarray:
        out = depth.copy()
        for j, name in enumerate(self.depths):
            if self.config.fixed not in name:
                out[:, j] = [move_nearest(view, geometry) for view in depth[:, j]]
        return out


def sample_geometry(config: AugmentConfig, side: int, rng: np.random.Generator) -> Geometry:
    """A random window of int(crop * side) pixels, and a rotation about its centre.

    Args:
      config: amounts.
      side: of the image, pixels.
      rng: of this element.

    Returns:
      The geometry.
    """
    kept = int(side * config.crop)
    limit = (side - kept) / 2
    down, across = rng.uniform(-limit, limit, 2)
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    return Geometry(kept / side, angle, (float(down), float(across)))


def sample_colours(config: AugmentConfig, rng: np.random.Generator) -> Colours:
    """Each amount is uniform up to either side of 0.

    Args:
      config: amounts.
      rng: of this element.

    Returns:
      The amounts.
    """
    names = ('brightness', 'contrast', 'hue', 'saturation')
    amounts = [float(rng.uniform(-getattr(config, name), getattr(config, name))) for name in names]
    return Colours(bool(rng.random() < config.colour_share), *amounts)


def move(image: UInt8[np.ndarray, 'h h 3'], geometry: Geometry) -> UInt8[np.ndarray, 'h h 3']:
    """Crop, stretch and rotation in one bilinear sampling, black beyond the image.

    Args:
      image: RGB.
      geometry: drawn.

    Returns:
      RGB.
    """
    side = image.shape[0]
    (down, across), sin, cos = geometry.shift, math.sin(geometry.angle), math.cos(geometry.angle)
    border = math.ceil(side / 2 * abs(sin) + max(abs(down), abs(across))) + 2
    a, b = geometry.scale * cos, geometry.scale * sin
    middle = side / 2
    # (row, col) = scale [[cos, sin], [-sin, cos]] (row, col); Pillow asks for columns first
    to_col = (a, -b, middle + border + across - a * middle + b * middle)
    to_row = (b, a, middle + border + down - a * middle - b * middle)
    padded = Image.fromarray(np.pad(image, ((border, border), (border, border), (0, 0))))
    return np.asarray(
        padded.transform(
            (side, side), Image.Transform.AFFINE, to_col + to_row, Image.Resampling.BILINEAR
        )
    )


def move_nearest(image: Num[np.ndarray, 'h h z'], geometry: Geometry) -> Num[np.ndarray, 'h h z']:
    """`move` for readings that must not be mixed; 0, no reading, beyond the image.

    Args:
      image: readings.
      geometry: drawn.

    Returns:
      Readings.
    """
    side = image.shape[0]
    sin, cos = math.sin(geometry.angle), math.cos(geometry.angle)
    row, col = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2, indexing='ij')
    down = geometry.scale * (cos * row + sin * col) + geometry.shift[0]
    across = geometry.scale * (cos * col - sin * row) + geometry.shift[1]
    at = [np.rint(x + (side - 1) / 2).astype(int) for x in (down, across)]
    inside = np.all([(x >= 0) & (x < side) for x in at], axis=0)
    return image[at[0] % side, at[1] % side] * inside[..., None].astype(image.dtype)


def recolour(image: UInt8[np.ndarray, 'h x 3'], colours: Colours) -> UInt8[np.ndarray, 'h x 3']:
    """Brightness and contrast of the value, then hue and saturation, in HSV (augmax's
    `ColorJitter`).

    Args:
      image: RGB.
      colours: drawn.

    Returns:
      RGB.
    """
    if not colours.applied:
        return image
    hue, saturation, value = to_hsv(image.astype(np.float32) / np.float32(255))
    value = contrasted(brightened(value, colours.brightness), colours.contrast)
    saturation = brightened(saturation, colours.saturation)
    rgb = from_hsv(hue + np.float32(colours.hue), saturation, value)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def brightened(x: Float[np.ndarray, '...'], amount: float) -> Float[np.ndarray, '...']:
    """Towards 1 for a positive amount, towards 0 for a negative one.

    Args:
      x: 0..1.
      amount: -1..1.

    Returns:
      0..1.
    """
    return x * np.float32(1 - abs(amount)) + np.float32(max(amount, 0.0))


def contrasted(x: Float[np.ndarray, '...'], amount: float) -> Float[np.ndarray, '...']:
    """Three straight pieces from (0, 0) by (0.5, 0.5) to (1, 1), the middle one of slope
    tan((amount + 1) pi / 4).

    Args:
      x: 0..1.
      amount: -1..1.

    Returns:
      0..1.
    """
    slope = np.float32(math.tan((amount + 1) * math.pi / 4))
    knee = slope / (2 * (1 + slope))
    middle = slope * (x - np.float32(0.5)) + np.float32(0.5)
    return np.where(x < knee, x / slope, np.where(x > 1 - knee, (x - 1) / slope + 1, middle))


def to_hsv(rgb: Float[np.ndarray, 'h x 3']) -> Sequence[Float[np.ndarray, 'h x']]:
    """Hue in turns, saturation and value, 0..1; hue and saturation are 0 where there is no colour.

    Args:
      rgb: 0..1.

    Returns:
      hue: in turns.
      saturation: 0..1.
      value: 0..1.
    """
    value, spread = rgb.max(-1), np.ptp(rgb, axis=-1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    coloured = np.where(spread == 0, np.float32(1), spread)
    red_on_top, green_on_top = (red == value), (green == value)
    after_blue = np.where(green_on_top, 2 + (blue - red) / coloured, 4 + (red - green) / coloured)
    hue = np.where(red_on_top, (green - blue) / coloured, after_blue) / np.float32(6)
    saturation = spread / np.where(value == 0, np.float32(1), value)
    return np.where(spread == 0, np.float32(0), hue), saturation, value


def from_hsv(
    hue: np.ndarray, saturation: np.ndarray, value: np.ndarray
) -> Float[np.ndarray, 'h x 3']:
    """The inverse of `to_hsv`; hue may lie outside 0..1.

    Args:
      hue: in turns.
      saturation: 0..1.
      value: 0..1.

    Returns:
      RGB, 0..1.
    """
    k = np.mod(np.array([5, 3, 1], np.float32) + hue[..., None] * np.float32(6), np.float32(6))
    share = np.clip(np.minimum(k, 4 - k), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * share)
