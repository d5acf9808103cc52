"""The golden pi0.5 of `tests/data/pi05_tiny` as our own structs: config, parameters, observation,
numbers.
"""

import functools
import json
import pathlib

import numpy as np

from sigma_jax.backbones import gemma, pi05, siglip
from sigma_jax.types import Observation

DATA = pathlib.Path(__file__).parent / 'data'
FIXTURE = DATA / 'pi05_tiny'


@functools.cache
def config() -> pi05.Pi05Config:
    """Sizes of the fixture, float32."""
    c = json.loads((FIXTURE / 'config.json').read_text())

    def expert(name, adaptive):
        s = c[name]
        return gemma.GemmaConfig(
            s['width'],
            s['depth'],
            s['mlp_dim'],
            s['num_heads'],
            s['num_kv_heads'],
            s['head_dim'],
            adaptive,
        )

    s = c['siglip']
    return pi05.Pi05Config(
        vision=siglip.SiglipConfig(
            s['width'], s['depth'], s['mlp_dim'], s['num_heads'], c['patch_size'], c['image_size']
        ),
        language=expert('vlm', False),
        expert=expert('action_expert', True),
        vocab_size=c['vocab_size'],
        action_dim=c['action_dim'],
        action_horizon=c['action_horizon'],
        sample_steps=c['num_steps'],
        dtype='float32',
    )


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    """The fixture's inputs."""
    return dict(np.load(FIXTURE / 'inputs.npz'))


@functools.cache
def outputs() -> dict[str, np.ndarray]:
    """What LeRobot (plain keys) and openpi (`_openpi`) compute."""
    return dict(np.load(FIXTURE / 'outputs.npz'))


def observation() -> Observation:
    """The fixture's two cameras and prompt."""
    i = inputs()
    return Observation(
        images=np.stack([i['cam0'], i['cam1']], axis=1),
        image_mask=np.stack([i['cam0_mask'], i['cam1_mask']], axis=1),
        prompt=i['tokens'],
        prompt_mask=i['token_mask'],
        text=i['tokens'],
        text_mask=i['token_mask'],
        state=np.zeros((3, config().action_dim), np.float32),
    )
