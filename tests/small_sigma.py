"""Sigma around the golden pi0.5, as small as it gets: sizes, frozen weights, a batch of sequences,
trainable leaves.
"""

import dataclasses
import functools

import jax
import numpy as np

from sigma_jax.backbones import pi05
from sigma_jax.convert import checkpoint
from sigma_jax.nn import lora
from sigma_jax.objectives.sigma import SigmaObjective, init_sigma
from sigma_jax.sigma.curriculum import CurriculumConfig
from sigma_jax.sigma.losses import LossConfig
from sigma_jax.sigma.model import SigmaConfig
from sigma_jax.types import Ablation, ActionScaling, Batch, Frozen, Observation
from tests import golden, quick

B, G, A, T = 2, 4, 3, 4
LORA = lora.LoraConfig(('.*/attn/(q|kv|attn_vec)_einsum/w',), rank=2, alpha=4.0, dropout=0.1)
SIGMA = SigmaConfig(
    d_model=64,
    state_dim=A,
    action_dim=A,
    horizon=T,
    chunk=2,
    d_tau=4,
    num_factors=2,
    num_visual=3,
    num_state=2,
    heads=4,
    vision_blocks=1,
    state_hidden=8,
    patch_size=28,
    audio_patch=4,
    use_depth=True,
    use_audio=True,
    action_width=8,
    action_heads=2,
    num_queries=2,
    query_blocks=1,
    token_dim=4,
    trajectory_blocks=1,
    refinement_steps=2,
)
PI05 = dataclasses.replace(golden.config(), lora=LORA)


def sigma_objective(**changes) -> SigmaObjective:
    """Ramps start above zero, so that every term has a gradient at the first step."""
    curriculum = CurriculumConfig(ramp_steps=4, tau=(0.01, 0.03))
    parts = {'config': PI05, 'sigma': SIGMA, 'loss': LossConfig(), 'curriculum': curriculum}
    return SigmaObjective(**parts | changes)


@functools.cache
def frozen() -> Frozen:
    """The golden weights and three joints of very different ranges."""
    scaling = {
        'action_std': np.array([2.0, 0.5, 10.0]),
        'low': np.array([-3.0, 0.0, -50.0]),
        'span': np.array([6.0, 1.0, 80.0]),
        'relative': np.zeros(A),
        'state_low': np.zeros(A),
        'state_span': np.ones(A),
    }
    params = checkpoint.load(golden.FIXTURE / 'openpi_jax').params
    arrays = {name: x.astype(np.float32) for name, x in scaling.items()}
    return Frozen(params, ActionScaling(**arrays))


def make_batch(seed=0) -> Batch:
    """Random windows [b=2 g=4] with two cameras, depth and audio; the last window of the second row
    is padding.
    """
    rng = np.random.default_rng(seed)
    lead, size = (B, G), PI05.vision.image_size
    tokens, text_mask = rng.integers(0, 512, (*lead, 3)), np.ones((*lead, 3), bool)
    text_mask[..., -1] = False
    observation = Observation(
        images=rng.integers(0, 256, (*lead, 2, size, size, 3)).astype(np.uint8),
        image_mask=np.ones((*lead, 2), bool),
        prompt=tokens,
        prompt_mask=text_mask,
        text=tokens,
        text_mask=text_mask,
        state=rng.standard_normal((*lead, A)).astype(np.float32),
        depth=rng.standard_normal((*lead, 2, size, size, 1)).astype(np.float32),
        audio=rng.standard_normal((*lead, 8)).astype(np.float32),
    )
    base = rng.standard_normal((*lead, T, A)).astype(np.float32)
    base[..., 0, 0] = -0.0
    action_mask, mask, reset = np.ones((*lead, T), bool), np.ones(lead, bool), np.zeros(lead, bool)
    action_mask[0, 1, 2:], mask[1, 3], reset[:, 0] = False, False, True
    return Batch(
        observation=observation,
        actions=base + rng.standard_normal(base.shape).astype(np.float32),
        action_mask=action_mask,
        base=base,
        reset=reset,
        mask=mask,
        text_id=np.arange(B)[:, None].repeat(G, 1).astype(np.int32),
        episode=np.arange(B)[:, None].repeat(G, 1).astype(np.int32),
        frame=np.arange(G)[None].repeat(B, 0).astype(np.int32),
    )


@functools.cache
def untrained() -> dict:
    """{'sigma', 'lora'} before the first step."""
    key = jax.random.key(0)
    sigma = quick.jit(lambda f, b: init_sigma(key, sigma_objective(), f, b))(frozen(), make_batch())
    return {
        'sigma': jax.device_get(sigma),
        'lora': lora.init_factors(key, frozen().params, pi05.LAYOUTS, LORA),
    }


def perturbed(scale=0.1) -> dict:
    """`untrained` with noise on every leaf: no zero hides a path."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(x + scale * rng.standard_normal(x.shape)), untrained())


@functools.cache
def forward():
    """`(trainable, frozen, batch, ablation) -> (Carry, SigmaOutput)` without dropout, compiled once
    for all tests.
    """
    return quick.jit(sigma_objective().forward)


def gates(**values) -> Ablation:
    """An ablation of arrays, so that every row shares one compiled program."""
    return jax.tree.map(np.float32, Ablation(**values))
