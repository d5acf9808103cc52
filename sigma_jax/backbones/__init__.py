"""The frozen policies that Sigma is built around: pi0.5 and its parts.

Names are resolved when they are first used: `sj.backbones.kinds.find('pi05')`,
`sj.backbones.Pi05Config`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigma_jax.backbones import base, gemma, kinds, names, pi05, pi05_prompt, siglip
    from sigma_jax.backbones.base import Backbone, BackboneConfig, BackboneSpec, FlowBackbone
    from sigma_jax.backbones.gemma import Gemma, GemmaConfig
    from sigma_jax.backbones.names import NameTable, Rule
    from sigma_jax.backbones.pi05 import BoundPi05, Pi05, Pi05Config
    from sigma_jax.backbones.siglip import Siglip, SiglipConfig

# where each public name is defined; the other public names are modules here
_HOMES = {
    'Backbone': 'base',
    'BackboneConfig': 'base',
    'BackboneSpec': 'base',
    'BoundPi05': 'pi05',
    'FlowBackbone': 'base',
    'Gemma': 'gemma',
    'GemmaConfig': 'gemma',
    'NameTable': 'names',
    'Pi05': 'pi05',
    'Pi05Config': 'pi05',
    'Rule': 'names',
    'Siglip': 'siglip',
    'SiglipConfig': 'siglip',
}

__all__ = [
    'Backbone',
    'BackboneConfig',
    'BackboneSpec',
    'BoundPi05',
    'FlowBackbone',
    'Gemma',
    'GemmaConfig',
    'NameTable',
    'Pi05',
    'Pi05Config',
    'Rule',
    'Siglip',
    'SiglipConfig',
    'base',
    'gemma',
    'kinds',
    'names',
    'pi05',
    'pi05_prompt',
    'siglip',
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = import_module(f'{__name__}.{_HOMES.get(name, name)}')
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    """The public names."""
    return __all__
