"""A policy of pi0.5's own size with random weights in bfloat16, served as `serve.py` serves one.

    python -m benchmarks.serving --policy=random --clients=1,16 --max_batch=16

What it answers means nothing; how long it takes is what a real one takes.
"""

import argparse
import dataclasses

import numpy as np
from rich.console import Console

import sigma_jax as sj
from sigma_jax.convert.load_base import ModelConfig, open_base, read_weights
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.policies.acting import ActingPolicy
from sigma_jax.policies.load import PROMPT_LENGTHS, Joints
from sigma_jax.policies.sampled_policy import BaseActor, make_sampler, stored_weights
from sigma_jax.processing.normalize import Statistics
from sigma_jax.processing.processor import of_policy
from sigma_jax.processing.spec import OPENPI
from sigma_jax.processing.tokenizer import load_tokenizer

NAMES = tuple(f'joint_{n}' for n in range(6))


def random_policy(tokenizer: str, cameras: tuple[str, ...]) -> ActingPolicy:
    """Two views of 224 pixels, a prompt of 200 tokens, chunks of 50 actions, 10 steps of flow."""
    ones = np.ones(len(NAMES), np.float32)
    some = Statistics(0 * ones, ones, -ones, ones, -ones, ones, -ones, ones)
    base = open_base('', ModelConfig('bfloat16'))
    settings = dataclasses.replace(OPENPI, cameras=cameras)
    base = dataclasses.replace(base, norm_stats={'state': some, 'actions': some}, policy=settings)
    base, horizon = read_weights(base, 0, tokenizer), base.config.action_horizon
    weights = stored_weights(base, QuantConfig('bfloat16'))
    sampler = make_sampler(base, Joints(NAMES, NAMES), horizon, weights=weights)
    words, side, prompt = load_tokenizer(tokenizer), base.config.image_size, base.spec.prompt
    processor = of_policy(
        base.policy, sampler.statistics, words, side, prompt, prompt_lengths=PROMPT_LENGTHS
    )
    return ActingPolicy(BaseActor(base, processor, sampler, horizon))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--tokenizer', required=True)
    parser.add_argument('--cameras', required=True)
    parser.add_argument('--keys', required=True)
    parser.add_argument('--max_batch', type=int, required=True)
    parser.add_argument('--max_wait_ms', type=float, required=True)
    parser.add_argument('--compilation_cache', required=True)
    given = vars(parser.parse_args())
    policy = random_policy(given.pop('tokenizer'), tuple(given.pop('cameras').split(',')))
    config = sj.ServingConfig(port=0, rate=0, **given)
    sj.serve(policy, config, reporter=sj.ConsoleReporter(Console(stderr=True), soft_wrap=True))


if __name__ == '__main__':
    main()
