"""Parity fixtures: what a public implementation computed, read from disk and checked against a
model's sizes.

A folder with `inputs.npz` (camera frames, prompt ids, actions, noise, time), `outputs.npz` (what
the implementation made of them) and `config.json` (names of the cameras, sizes, sampling steps).
`tools/make_fixture.py` writes one; a fixture may hold any number of cameras and any subset of the
quantities.
"""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from sigma_jax.backbones import kinds
from sigma_jax.backbones.base import BackboneConfig
from sigma_jax.errors import UserError, few
from sigma_jax.types import Observation

REMEDY = 'make the fixture again with tools/make_fixture.py'


@dataclasses.dataclass(frozen=True)
class Fixture:
    """`inputs` and `outputs` by name, the `cameras` in the order of the prefix, and the rest of
    config.json.
    """

    folder: pathlib.Path
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    cameras: tuple[str, ...]
    config: Mapping

    def observation(self) -> Observation:
        """Views, camera masks and prompt as the model takes them; the state is inside the
        prompt.
        """
        i = self.inputs
        masks = [i[f'{name}_mask'] for name in self.cameras]
        return Observation(
            images=np.stack([i[name] for name in self.cameras], axis=1),  # type: ignore[arg-type]
            image_mask=np.stack(masks, axis=1),  # type: ignore[arg-type]
            prompt=i['tokens'],  # type: ignore[arg-type]
            prompt_mask=i['token_mask'],  # type: ignore[arg-type]
            text=i['tokens'],  # type: ignore[arg-type]
            text_mask=i['token_mask'],  # type: ignore[arg-type]
            state=np.zeros((len(i['tokens']), 1), np.float32),  # type: ignore[arg-type]
        )


def read_fixture(folder: str | pathlib.Path) -> Fixture:
    """Reads the three files of a fixture.

    Args:
      folder: of the fixture.

    Returns:
      The fixture.

    Raises:
      UserError: a missing or damaged file, a pickle, NaN or infinity.
    """
    folder = pathlib.Path(folder)
    config = _read_config(folder / 'config.json')
    fixture = Fixture(
        folder,
        _read_arrays(folder / 'inputs.npz'),
        _read_arrays(folder / 'outputs.npz'),
        tuple(config['cameras']),
        config,
    )
    if not fixture.outputs:
        raise UserError(f'expected quantities in {folder / "outputs.npz"}, got none; {REMEDY}')
    return fixture


def _read_config(file: pathlib.Path) -> dict:
    if not file.is_file():
        raise UserError(
            f'expected a fixture with config.json, inputs.npz and outputs.npz, got no {file}; '
            'check the path'
        )
    try:
        config = json.loads(file.read_text())
        cameras, steps = config['cameras'], config['num_steps']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected 'cameras' and 'num_steps' in {file}, got {error!r}; {REMEDY}"
        ) from error
    named = isinstance(cameras, list) and all(isinstance(name, str) for name in cameras)
    if not named or not cameras or not isinstance(steps, int) or steps < 1:
        raise UserError(
            f'expected names of cameras and a number of steps in {file}, got '
            f'{cameras}, {steps}; {REMEDY}'
        )
    return config


def _read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with open(file, 'rb') as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'expected numpy arrays in {file}, got: {reason}; copy it again') from error
    for name, array in arrays.items():
        if array.dtype.kind not in 'fiub':
            raise UserError(
                f'expected numbers in {name} of {file}, got dtype {array.dtype}; {REMEDY}'
            )
        if not np.isfinite(array).all():
            raise UserError(
                f'expected finite numbers in {name} of {file}, got NaN or infinity; {REMEDY}'
            )
    return arrays


def check_sizes(fixture: Fixture, model: BackboneConfig) -> None:
    """Checks that a fixture was made with a checkpoint of these sizes.

    Args:
      fixture: read.
      model: sizes of the checkpoint.

    Raises:
      UserError: it was not; names every size that differs.
    """
    differences = []
    sizes = kinds.of(model).public_sizes
    for path, got in (sizes(model) if sizes else {}).items():
        want: Any = fixture.config
        for key in path.split('.'):
            want = want.get(key, got) if isinstance(want, Mapping) else got
        if want != got:
            differences.append(f'{path} {want} in the fixture, {got} in the checkpoint')
    if differences:
        raise UserError(
            f'expected the fixture of this model in {fixture.folder}, got that of another: '
            f'{"; ".join(differences)}; give its own'
        )


def check_inputs(fixture: Fixture, model: BackboneConfig, needed: set[str]) -> None:
    """Checks names, shapes and token ids of a fixture's inputs.

    Args:
      fixture: read.
      model: sizes of the checkpoint.
      needed: names that are read in addition to the observation.

    Raises:
      UserError: one is missing or has another shape, or the vocabulary does not hold an id.
    """
    i, size = fixture.inputs, model.image_size
    observed = {
        'tokens',
        'token_mask',
        *fixture.cameras,
        *(f'{name}_mask' for name in fixture.cameras),
    }
    file = fixture.folder / 'inputs.npz'
    if missing := sorted((observed | needed) - i.keys()):
        raise UserError(
            f'expected {", ".join(missing)} in {file}, got {", ".join(sorted(i))}; {REMEDY}'
        )
    if i['tokens'].ndim != 2:
        raise UserError(
            f'expected tokens of shape (batch, length) in {file}, got {i["tokens"].shape}; {REMEDY}'
        )
    b, length = i['tokens'].shape
    horizon = next((i[name].shape[1] for name in sorted(needed) if i[name].ndim == 3), 0)
    want: dict[str, tuple[int, ...]] = {'token_mask': (b, length)}
    for name in fixture.cameras:
        want |= {name: (b, size, size, 3), f'{name}_mask': (b,)}
    want |= {name: (b,) if name == 'time' else (b, horizon, model.action_dim) for name in needed}
    wrong = [
        f'{name}: expected {shape}, got {i[name].shape}'
        for name, shape in want.items()
        if i[name].shape != shape
    ]
    if wrong:
        raise UserError(
            f"expected arrays of the model's shapes in {file}, got others: {few(wrong)}; {REMEDY}"
        )
    low, high = int(i['tokens'].min(initial=0)), int(i['tokens'].max(initial=0))
    if low < 0 or high >= model.vocab_size:
        raise UserError(
            f'expected token ids from 0 to {model.vocab_size - 1} in {file}, got '
            f'{low} to {high}; {REMEDY}'
        )
