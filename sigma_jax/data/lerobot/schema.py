"""What meta/info.json says about images, checked before anything is read by it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma_jax.errors import UserError

MAX_PIXELS = 2**26  # of an image, twice 8K; more is a claim, not a camera
IMAGE_DTYPES = ('video', 'image')

Features = Mapping[str, Mapping[str, Any]]


def check_features(features: Any, path: Path) -> None:
    """Checks that features map names to descriptions, and that images have a plausible size.

    Args:
      features: of info.json.
      path: of that file, for messages.

    Raises:
      UserError: they do not.
    """
    if not isinstance(features, dict) or not all(
        isinstance(value, dict) for value in features.values()
    ):
        raise UserError(
            f"expected 'features' in {path} to map names to objects, got something "
            'else; fetch it again'
        )
    for key in features:
        if '/' in key or '\\' in key or '\0' in key:
            raise UserError(
                f'expected feature names without slashes in {path}, got {key!r}; rename it there'
            )
        if is_image(features[key]):
            _check_size(key, features[key].get('shape'), path)


def is_image(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is a camera, stored as a video or as images.

    Args:
      feature: of info.json.

    Returns:
      Whether it is.
    """
    return feature.get('dtype') in IMAGE_DTYPES


def _check_size(key: str, shape: Any, path: Path) -> None:
    sizes = list(shape) if isinstance(shape, list | tuple) else []
    if (
        len(sizes) != 3
        or not all(type(n) is int and n >= 1 for n in sizes)
        or math.prod(sizes) > 4 * MAX_PIXELS
    ):
        raise UserError(
            f"expected '{key}' of shape [height, width, channels] up to {MAX_PIXELS} pixels in "
            f'{path}, got {shape!r}; correct it there'
        )


def image_size_of(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Size of a camera's images; channels may stand first, as `names` says or, without names, a 1,
    3 or 4 there.

    Args:
      feature: of info.json.

    Returns:
      (height, width) in pixels.
    """
    shape, names = feature['shape'], feature.get('names')
    if (
        isinstance(names, list | tuple)
        and {'height', 'width'} <= set(map(str, names))
        and len(names) == 3
    ):
        return shape[names.index('height')], shape[names.index('width')]
    first = shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    return (shape[1], shape[2]) if first else (shape[0], shape[1])
