"""Inputs of a parity fixture: sizes, cameras, and deterministic random frames, prompts, actions and
noise.
"""

import argparse
import json
import pathlib

import numpy as np
from fixture_library import Failure, openpi_model

INPUTS = ('tokens', 'token_mask', 'actions', 'noise', 'sample_noise', 'time')
RENAMED = {
    'max_action_dim': 'action_dim',
    'chunk_size': 'action_horizon',
    'num_inference_steps': 'num_steps',
}
RENAMED |= {'tokenizer_max_length': 'text_length', 'max_token_len': 'text_length'}
OPENPI_CAMERAS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')


def read_settings(flags: argparse.Namespace) -> dict:
    """Sizes of the run: pi0.5's, then of the config.json beside the checkpoint, --tiny-config, the
    flags; last wins.
    """
    settings: dict = {'image_size': 224, 'patch_size': 14, 'vocab_size': 257152, 'text_length': 200}
    settings |= {'action_dim': 32, 'action_horizon': 50, 'num_steps': 10}
    folder = pathlib.Path(flags.checkpoint)
    settings_file = (folder if folder.is_dir() else folder.parent) / 'config.json'
    if settings_file.is_file():
        settings |= sizes_of(read_json(settings_file), settings)
    if flags.library != 'lerobot' and flags.config:
        settings |= sizes_of(vars(openpi_model(flags.config)), settings)
    if flags.tiny_config:
        stored = read_json(pathlib.Path(flags.tiny_config))
        settings |= sizes_of(stored, settings) | {'tiny': tiny_parts(stored, flags.tiny_config)}
    given = {'action_dim': flags.action_dim, 'action_horizon': flags.action_horizon}
    given |= {'num_steps': flags.steps, 'text_length': flags.text_length}
    return settings | {key: value for key, value in given.items() if value is not None}


def read_json(file: pathlib.Path) -> dict:
    """A JSON object."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise Failure(
            f'expected the sizes of a model in {file}, got: {error}; correct the path or the file'
        ) from error


def sizes_of(stored: dict, known: dict) -> dict:
    """The sizes that a config of a fixture, of LeRobot or of openpi holds, under the names of
    `known`.
    """
    found = {RENAMED.get(key, key): value for key, value in stored.items()}
    if 'image_resolution' in stored:  # LeRobot's; square
        found['image_size'] = stored['image_resolution'][0]
    return {key: int(found[key]) for key in known if found.get(key) is not None and key != 'tiny'}


def tiny_parts(stored: dict, file: str) -> dict:
    """Widths, depths and heads of the three parts of a model that is smaller than pi0.5."""
    parts = ('siglip', 'vlm', 'action_expert')
    if missing := [key for key in parts if key not in stored]:
        raise Failure(
            f'expected {", ".join(missing)} in {file}, as in the config.json of a fixture; add them'
        )
    heads = {stored[key]['num_heads'] for key in parts[1:]}
    if heads != {8}:
        raise Failure(
            f'expected 8 heads of attention in {file}, got {sorted(heads)}; LeRobot and openpi '
            'know no others'
        )
    return {key: stored[key] for key in parts}


def camera_names(text: str, library: str) -> list[str]:
    """`--cameras`: a number, or names with commas between them."""
    if not text.isdigit():
        names = [name.strip() for name in text.split(',')]
        if not all(names) or len(set(names)) < len(names) or set(names) & set(INPUTS):
            raise Failure(
                f'expected a number or different names as --cameras, got {text!r}; e.g. '
                '--cameras up,side'
            )
        return names
    if library != 'lerobot' and int(text) <= len(OPENPI_CAMERAS):
        return list(OPENPI_CAMERAS[: int(text)])
    return [f'cam{n}' for n in range(int(text))]


def frames(rng: np.random.Generator, batch: int, size: int) -> np.ndarray:
    """Smooth gradients and waves with pixel noise, uint8 scaled to [-1, 1]: [batch, size, size,
    3].
    """
    y, x = np.mgrid[:size, :size] / size
    wave = rng.uniform(0.5, 3.0, (2, batch, 1, 1, 3))
    phase = rng.uniform(0, 2 * np.pi, (batch, 1, 1, 3))
    smooth = np.sin(
        2 * np.pi * (wave[0] * y[None, ..., None] + wave[1] * x[None, ..., None]) + phase
    )
    pixels = 127.5 + 90 * smooth + rng.normal(0, 15, smooth.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8).astype(np.float32) / 255 * 2 - 1


def make_inputs(settings: dict, cameras: list[str], batch: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs by seed: the last camera is absent in the second sample, and every prompt has a length
    of its own.
    """
    rng = np.random.default_rng(seed)
    length, valid = settings['text_length'], settings['text_length']
    inputs = {}
    for n, name in enumerate(cameras):
        inputs[name] = frames(rng, batch, settings['image_size'])
        present = np.ones(batch, bool)
        present[1:2] = n < len(cameras) - 1
        inputs[f'{name}_mask'] = present
    lengths = np.linspace(valid, max(2, length // 4), batch).astype(int)
    inputs['token_mask'] = np.arange(length)[None] < lengths[:, None]
    tokens = rng.integers(3, settings['vocab_size'], (batch, length))
    tokens[:, 0] = 2  # bos
    inputs['tokens'] = np.where(inputs['token_mask'], tokens, 0).astype(np.int32)
    shape = (batch, settings['action_horizon'], settings['action_dim'])
    for name in ('actions', 'noise', 'sample_noise'):
        inputs[name] = rng.standard_normal(shape).astype(np.float32) * (
            0.5 if name == 'actions' else 1
        )
    inputs['time'] = rng.uniform(0.02, 0.98, batch).astype(np.float32)
    return inputs


def read_inputs(file: str, settings: dict) -> tuple[dict[str, np.ndarray], list[str]]:
    """Inputs of an earlier fixture, and its cameras in their order; `settings` are the sizes of the
    model.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            inputs = dict(stored)
    except (OSError, ValueError) as error:
        raise Failure(
            f'expected the inputs.npz of a fixture at {file}, got: {error}; correct the path'
        ) from error
    cameras = [name for name in inputs if f'{name}_mask' in inputs and inputs[name].ndim == 4]
    missing = [name for name in INPUTS if name not in inputs] + (
        [] if cameras else ['a camera with its mask']
    )
    if missing:
        raise Failure(
            f'expected {", ".join(missing)} in {file}, got {", ".join(inputs)}; use the '
            'inputs of a fixture'
        )
    got = [inputs[cameras[0]].shape[1], inputs['actions'].shape[-1]]
    want = [settings['image_size'], settings['action_dim']]
    if got != want:
        raise Failure(
            f'expected frames of {want[0]} px and {want[1]} action dimensions in {file}, got '
            f'{got}; use another'
        )
    return inputs, cameras
