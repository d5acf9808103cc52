"""Prompts where no base is named yet, in preparing data and reading them; loads no JAX."""

from sigma_jax.backbones import pi05_prompt
from sigma_jax.processing.processor import Prompt

USUAL: Prompt = pi05_prompt.prompt_parts
