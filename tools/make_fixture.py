r"""Makes a parity fixture of a pi0.5 checkpoint inside your own LeRobot or openpi installation.

    python make_fixture.py --library lerobot --checkpoint outputs/train/last/pretrained_model \
        --out fixture
    python make_fixture.py --library openpi-jax --config pi05_droid \
        --checkpoint checkpoints/pi05_droid --out fixture
    python make_fixture.py --library openpi-pytorch --checkpoint model.safetensors --out fixture

Random camera frames, prompt ids, actions and noise go through the library's own modules, and what
these compute is written down: `inputs.npz`, `outputs.npz`, `config.json`. Then, where sigma_jax is
installed,

    python convert_weights.py verify --checkpoint CHECKPOINT --fixture fixture

compares every quantity. This folder stands alone: it needs numpy and the library, LeRobot >= 0.5 or
openpi. The frames are handed in as the model sees them (224 px, [-1, 1]), so resizing and
augmentation take no part.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys

import numpy as np
from fixture_inputs import camera_names, make_inputs, read_inputs, read_settings
from fixture_jax import run_jax
from fixture_library import Failure, say
from fixture_torch import run_torch, safetensors_files

LIBRARIES = ('lerobot', 'openpi-jax', 'openpi-pytorch')
PACKAGES = (
    'lerobot',
    'openpi',
    'torch',
    'transformers',
    'jax',
    'flax',
    'orbax-checkpoint',
    'numpy',
)
DIGEST_LIMIT = 4 * 2**30  # bytes; a larger checkpoint is recorded by its size alone


def split_prefix(outputs: dict, cameras: list[str], text_length: int) -> dict[str, np.ndarray]:
    """The quantities, with every camera's tokens and the prompt's beside the whole prefix."""
    prefix = outputs['prefix_embeddings']
    tokens = (prefix.shape[1] - text_length) // len(cameras)
    parts = {
        f'image_embeddings_{name}': prefix[:, n * tokens : (n + 1) * tokens]
        for n, name in enumerate(cameras)
    }
    return parts | {'token_embeddings': prefix[:, -text_length:]} | outputs


def describe(flags: argparse.Namespace, settings: dict, inputs: dict, cameras: list[str]) -> dict:
    """config.json: what was run, on which weights, with which versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    batch, text_length = inputs['tokens'].shape
    tokens = (settings['image_size'] // settings['patch_size']) ** 2
    return {
        'library': flags.library,
        'seed': None if flags.inputs else flags.seed,
        'dtype': flags.dtype,
        'device': flags.device,
        'batch': batch,
        'cameras': cameras,
        **{key: settings[key] for key in ('image_size', 'patch_size', 'vocab_size', 'action_dim')},
        'tokens_per_image': tokens,
        'text_length': text_length,
        'valid_text_tokens': [int(n) for n in inputs['token_mask'].sum(axis=1)],
        'prefix_length': tokens * len(cameras) + text_length,
        'action_horizon': inputs['actions'].shape[1],
        'num_steps': settings['num_steps'],
        **settings['sizes'],
        'versions': versions,
        'checkpoint': describe_checkpoint(pathlib.Path(flags.checkpoint), flags.library),
    }


def describe_checkpoint(path: pathlib.Path, library: str) -> dict:
    """Name, bytes, and the SHA-256 over all its files in order of their names where they are not
    too large.
    """
    files = (
        sorted(file for file in path.rglob('*') if file.is_file())
        if library == 'openpi-jax'
        else safetensors_files(path)
    )
    size = sum(file.stat().st_size for file in files)
    digest = hashlib.sha256()
    for file in files if size <= DIGEST_LIMIT else ():
        with open(file, 'rb') as stream:
            while block := stream.read(2**24):
                digest.update(block)
    return {
        'name': path.name,
        'bytes': size,
        'sha256': digest.hexdigest() if size <= DIGEST_LIMIT else None,
    }


def write(out: pathlib.Path, inputs: dict, outputs: dict, config: dict) -> None:
    """The three files, whole or not at all."""
    part = out.with_name(f'.{out.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        np.savez_compressed(part / 'inputs.npz', **inputs)
        np.savez_compressed(part / 'outputs.npz', **outputs)
        (part / 'config.json').write_text(json.dumps(config, indent=1) + '\n')
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def make(flags: argparse.Namespace) -> None:
    """Inputs, two runs through the library, files. Fails where the two runs differ: then no number
    is to be trusted.
    """
    out = pathlib.Path(flags.out)
    if out.exists():
        raise Failure(
            f'expected {out} not to exist yet, got a finished one; remove it or choose another name'
        )
    if not pathlib.Path(flags.checkpoint).exists():
        raise Failure(
            f'expected a checkpoint at {flags.checkpoint}, got no such file or folder; '
            'check the path'
        )
    settings, cameras = read_settings(flags), camera_names(flags.cameras, flags.library)
    if flags.inputs:
        inputs, cameras = read_inputs(flags.inputs, settings)
        settings |= {
            'text_length': inputs['tokens'].shape[1],
            'action_horizon': inputs['actions'].shape[1],
        }
    else:
        inputs = make_inputs(settings, cameras, flags.batch, flags.seed)
    run = run_jax if flags.library == 'openpi-jax' else run_torch
    outputs = split_prefix(run(flags, settings, inputs, cameras), cameras, settings['text_length'])
    if bad := [name for name, x in outputs.items() if not np.isfinite(x).all()]:
        raise Failure(
            f'expected finite numbers from {flags.library}, got NaN or infinity in {", ".join(bad)}'
        )
    say(f'writing {out}')
    write(out, inputs, outputs, describe(flags, settings, inputs, cameras))
    for name, x in outputs.items():
        scale = f'max |x| {np.abs(x).max():.4g}' if x.dtype.kind == 'f' else f'{x.dtype}'
        print(f'  {name:28} {" x ".join(map(str, x.shape)):16} {scale}')


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--library', required=True, choices=LIBRARIES, help='whose implementation computes')
    add(
        '--checkpoint',
        required=True,
        help='its weights: a .safetensors file, or a folder with one or with orbax params',
    )
    add('--out', required=True, help='folder to write; must not exist')
    add(
        '--config',
        help='openpi: name of the training config, e.g. pi05_droid (default: pi0.5 '
        'with the sizes below)',
    )
    add('--batch', type=int, default=2, help='samples (default: 2)')
    add(
        '--cameras',
        default='2',
        help='how many, or their names with commas between them (default: 2)',
    )
    add('--seed', type=int, default=0, help='of the random inputs (default: 0)')
    add(
        '--dtype',
        choices=('float32', 'bfloat16'),
        default='float32',
        help='to compute in (default: float32)',
    )
    add('--device', default='cpu', help='cpu or cuda; JAX takes what it finds (default: cpu)')
    add('--inputs', help='inputs.npz of an earlier fixture, instead of random ones')
    add('--steps', type=int, help='of the sampler (default: as the checkpoint says, or 10)')
    add('--action-dim', type=int, help='(default: as the checkpoint says, or 32)')
    add('--action-horizon', type=int, help='(default: as the checkpoint says, or 50)')
    add(
        '--text-length',
        type=int,
        help='tokens of a prompt with its padding (default: as the checkpoint says, or 200)',
    )
    add(
        '--tiny-config',
        help='config.json of a fixture whose model is smaller than pi0.5: its sizes replace the '
        'constants',
    )
    flags = parser.parse_args(arguments)
    for name in ('batch', 'steps', 'action_dim', 'action_horizon', 'text_length'):
        value = getattr(flags, name)
        if value is not None and value < 1:
            parser.error(f'expected --{name.replace("_", "-")} of at least 1, got {value}')
    if flags.cameras.isdigit() and int(flags.cameras) < 1:
        parser.error('expected --cameras of at least 1, got 0')
    return flags


def main() -> int:
    """Entry point; 2 is the status of a failure that the user can mend."""
    try:
        make(parse())
    except Failure as failure:
        print(f'error: {failure}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
