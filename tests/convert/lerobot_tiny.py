"""LeRobot's own `PI05Policy` at the sizes of the golden pi0.5, for the tests marked `reference`.

`python -m tests.convert.lerobot_tiny OUT` writes what lies in tests/data/peft_tiny: adapters that
peft saved, and what LeRobot's policy computes with them. Needs Python 3.12 and torch==2.13.0,
transformers==5.5.4, peft, lerobot==0.6.1, av<16; torchvision, of which no build for CPUs exists, is
replaced by a stand-in: nothing here calls it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np

from tests import golden

RANK, ALPHA = 4, 10
GEMMA = r'.*\.(language_model|gemma_expert\.model)\.layers\.\d+\.self_attn\.(q|k|v|o)_proj'
EVERYTHING = (
    rf'{GEMMA}|.*\.layers\.\d+\.(mlp\.\w+_proj|mlp\.fc\d|self_attn\.\w+_proj)'
    r'|.*multi_modal_projector\.linear'
)
ADAPTERS = {'attention': GEMMA, 'everything': EVERYTHING}


class _Missing(types.ModuleType):
    """A module whose every attribute is an empty class."""

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision where there is none."""

    def find_spec(self, name, path=None, target=None):
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True)
            if name.startswith('torchvision')
            else None
        )

    def create_module(self, spec):
        return _Missing(spec.name)

    def exec_module(self, module):
        pass


def modeling():
    """LeRobot's module of pi0.5, with the sizes of the fixture in place of the public ones."""
    import torch
    import transformers.utils  # looks for torchvision, and must not find the stand-in  # noqa: F401

    torch.set_num_threads(1)  # several have given wrong results on some CPUs
    if importlib.util.find_spec('torchvision') is None:
        sys.meta_path.append(_StandIn())
    from lerobot.policies.pi05 import modeling_pi05 as module

    if not hasattr(module, 'full_size'):
        module.full_size = (
            module.PaliGemmaForConditionalGenerationWithPiGemma,
            module.PiGemmaForCausalLM,
        )
        module.PaliGemmaForConditionalGenerationWithPiGemma = _small_paligemma
        module.PiGemmaForCausalLM = _small_gemma
        module.get_gemma_config = lambda variant: _gemma_sizes(module, variant)
    return module


def _fixture():
    return json.loads((golden.FIXTURE / 'config.json').read_text())


def _gemma_sizes(module, variant):
    s = _fixture()['vlm' if variant == 'gemma_2b' else 'action_expert']
    return module.GemmaConfig(
        s['width'], s['depth'], s['mlp_dim'], s['num_heads'], s['num_kv_heads'], s['head_dim']
    )


def _small_paligemma(config):
    c, vision = _fixture(), config.vision_config
    vision.hidden_size, vision.num_hidden_layers = c['siglip']['width'], c['siglip']['depth']
    vision.intermediate_size, vision.num_attention_heads = (
        c['siglip']['mlp_dim'],
        c['siglip']['num_heads'],
    )
    vision.patch_size, vision.projection_dim = c['patch_size'], c['vlm']['width']
    config.projection_dim, config.text_config.vocab_size = c['vlm']['width'], c['vocab_size']
    return modeling().full_size[0](config=config)


def _small_gemma(config):
    config.vocab_size = _fixture()['vocab_size']
    return modeling().full_size[1](config=config)


def policy():
    """LeRobot's policy with the golden weights, in evaluation mode."""
    from safetensors.torch import load_file

    c, module = _fixture(), modeling()
    sizes = {
        'max_action_dim': c['action_dim'],
        'max_state_dim': c['action_dim'],
        'chunk_size': c['action_horizon'],
    }
    image = (c['image_size'],) * 2
    config = module.PI05Config(
        **sizes, n_action_steps=c['action_horizon'], image_resolution=image, device='cpu'
    )
    out = module.PI05Policy(config).eval()
    out.load_state_dict(load_file(golden.FIXTURE / 'lerobot.safetensors'))
    return out


def float32_time(time, dimension, min_period, max_period, device):
    """openpi's [sin, cos] embedding of time: LeRobot's formula, but in float32."""
    import torch

    period = min_period * (max_period / min_period) ** torch.linspace(0.0, 1.0, dimension // 2)
    angle = time[:, None] * (1.0 / period * 2 * torch.pi)
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


def compute(core) -> dict[str, np.ndarray]:
    """Velocity and sampled actions of a `PI05Pytorch`, adapted or not, on the golden inputs.

    `velocity_float32_time` is the velocity with time embedded in float32, as openpi and we do it.
    """
    import torch

    i = {key: torch.from_numpy(x) for key, x in golden.inputs().items()}
    images = [i[name].permute(0, 3, 1, 2) for name in ('cam0', 'cam1')]
    prefix = (images, [i['cam0_mask'], i['cam1_mask']], i['tokens'].long(), i['token_mask'])
    module, seen = modeling(), []
    embedding = module.create_sinusoidal_pos_embedding
    handle = core.action_out_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        for module.create_sinusoidal_pos_embedding in (float32_time, embedding):
            core(*prefix, i['actions'], i['noise'], i['time'])
        handle.remove()
        sampled = core.sample_actions(*prefix, noise=i['sample_noise'])
    same_time, velocity = (x.numpy() for x in seen)
    return {
        'velocity': velocity,
        'velocity_float32_time': same_time,
        'sampled_actions': sampled.numpy(),
    }


def adapted(target_modules, seed=0, **settings):
    """A `PeftModel` around the policy, with random B (peft starts from zero, which would hide every
    mistake).
    """
    import peft
    import torch

    torch.manual_seed(seed)
    options = {
        'r': RANK,
        'lora_alpha': ALPHA,
        'lora_dropout': 0.1,
        'target_modules': target_modules,
    } | settings
    model = peft.get_peft_model(policy(), peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if 'lora_B' in name:
                weight.normal_(0, 0.1)
    return model


def write(out: pathlib.Path) -> None:
    """Adapters as peft saves them, and the policy's numbers."""
    numbers = {f'base_{key}': x for key, x in compute(policy().model).items()}
    for name, target_modules in ADAPTERS.items():
        model = adapted(target_modules)
        model.save_pretrained(out / name)
        (out / name / 'README.md').unlink(missing_ok=True)
        numbers |= {f'{name}_{key}': x for key, x in compute(model.base_model.model.model).items()}
    np.savez(out / 'outputs.npz', **numbers)


if __name__ == '__main__':
    write(pathlib.Path(sys.argv[1]))
