"""The user's LeRobot or openpi: finding its modules, its config, and putting other sizes where it
has constants.
"""

import argparse
import dataclasses
import importlib
import time


class Failure(Exception):
    """What the user can mend, in one sentence."""


def say(text: str) -> None:
    """A line of progress."""
    print(f'[{time.strftime("%H:%M:%S")}] {text}', flush=True)


def load(module: str, what: str):
    """Imports a module of the library, or says what is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Failure(
            f'expected {what} in this Python, got: {error}; run this inside your installation of it'
        ) from error


def tiny_gemma(module, settings: dict, kind: str):
    """A replacement of `get_config(variant)`: the two experts of --tiny-config."""
    keys = ('width', 'depth', 'mlp_dim', 'num_heads', 'num_kv_heads', 'head_dim')
    experts = {'gemma_2b': settings['tiny']['vlm'], 'gemma_300m': settings['tiny']['action_expert']}
    return lambda variant: getattr(module, kind)(**{key: experts[variant][key] for key in keys})


def openpi_model(name: str | None):
    """The model config of openpi's training config `name`; without a name that of pi0.5."""
    if not name:
        return load('openpi.models.pi0_config', 'openpi').Pi0Config(pi05=True)
    try:
        model = (
            load('openpi.training.config', 'openpi with its training extras').get_config(name).model
        )
    except ValueError as error:
        raise Failure(
            f'expected the name of an openpi config as --config, got: {error}; choose a pi05_ one'
        ) from error
    if not getattr(model, 'pi05', False):
        raise Failure(
            f'expected a pi0.5 config, got {name!r} with {type(model).__name__}; choose a pi05_ one'
        )
    return model


def openpi_config(flags: argparse.Namespace, settings: dict):
    """openpi's model config with the sizes and dtype of this run."""
    sizes = {'action_dim': settings['action_dim'], 'action_horizon': settings['action_horizon']}
    sizes |= {'max_token_len': settings['text_length'], 'dtype': flags.dtype}
    return dataclasses.replace(openpi_model(flags.config), **sizes)
