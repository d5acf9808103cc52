"""LeRobot's PyTorch pi0.5 in the case `lora` of `benchmarks/train.py`; the last line is its row as
JSON.

LeRobot's own model with random weights, built as for the parity tests, and its own training step:
bfloat16 under autocast, TF32 elsewhere, gradient checkpointing, AdamW on LoRA factors alone,
gradients clipped. LoRA is rank 16 with dropout 0.05 on q, k, v and o of both Gemma experts, SigLIP
and all else frozen. The factors sit in modules of our own, which compute what PEFT's do; PEFT is
left out because its casts and bookkeeping would only slow LeRobot down. With `--mode compile` the
loss is compiled as LeRobot's `compile_model` does it.

Needs LeRobot >= 0.5 and no sigma_jax. `--tiny` takes the sizes of the parity fixture, for a CPU.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import pathlib
import statistics
import sys
import time
import types
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / 'benchmarks'), str(ROOT / 'tools')]

from fixture_inputs import read_settings  # noqa: E402
from fixture_library import load  # noqa: E402
from fixture_torch import build_lerobot  # noqa: E402
from make_fixture import parse  # noqa: E402
from parity_weights import fill  # noqa: E402

TINY = ROOT / 'tests' / 'data' / 'pi05_tiny' / 'config.json'
RANK, ALPHA, DROPOUT, VIEWS, PROMPT = 16, 16.0, 0.05, 2, 200
ADAPTED = ('q_proj', 'k_proj', 'v_proj', 'o_proj')


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision where there is none, as for PyTorch on a CPU: LeRobot imports it, and this
    run calls none.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A package for every part of torchvision."""
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True)
            if name.startswith('torchvision')
            else None
        )

    def create_module(self, spec: Any) -> types.ModuleType:
        """A module whose every attribute is an empty class."""

        class Missing(types.ModuleType):
            def __getattr__(self, name: str) -> type:
                if name.startswith('__'):
                    raise AttributeError(name)
                return type(name, (), {})

        return Missing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def adapt(torch: Any, model: Any) -> list:
    """Freezes `model`, puts factors beside the projections of both Gemma experts, and returns the
    factors.
    """

    class Adapted(torch.nn.Module):
        """x W + alpha / r * B A dropout(x), factors in float32."""

        def __init__(self, base: Any):
            super().__init__()
            self.base, self.weight = base, base.weight  # LeRobot looks at the weight's dtype
            make = {'device': base.weight.device, 'dtype': torch.float32}
            self.a = torch.nn.Parameter(
                torch.randn(RANK, base.in_features, **make) * base.in_features**-0.5
            )
            self.b = torch.nn.Parameter(torch.zeros(base.out_features, RANK, **make))
            self.dropout = torch.nn.Dropout(DROPOUT)

        def forward(self, x: Any) -> Any:
            linear, low = torch.nn.functional.linear, self.dropout(x)
            y = self.base(x)
            return y + linear(linear(low, self.a.to(y.dtype)), self.b.to(y.dtype)) * (ALPHA / RANK)

    model.requires_grad_(False)
    factors = []
    for name, module in list(model.named_modules()):
        if name.endswith('self_attn') and 'vision_tower' not in name:
            for part in ADAPTED:
                adapted = Adapted(getattr(module, part))
                setattr(module, part, adapted)
                factors += [adapted.a, adapted.b]
    return factors


def make_batch(torch: Any, settings: dict, batch: int, device: str) -> tuple:
    """Arguments of `PI05Pytorch.forward` but noise and time, on the device."""
    size, prompt = settings['image_size'], settings['text_length']
    images = [torch.rand(batch, 3, size, size, device=device) * 2 - 1 for _ in range(VIEWS)]
    masks = [torch.ones(batch, dtype=torch.bool, device=device) for _ in range(VIEWS)]
    tokens = torch.randint(0, settings['vocab_size'], (batch, prompt), device=device)
    actions = torch.randn(batch, settings['action_horizon'], settings['action_dim'], device=device)
    return images, masks, tokens, torch.ones_like(tokens, dtype=torch.bool), actions


def make_step(torch: Any, model: Any, forward: Any, batch: tuple, device: str) -> Any:
    """One optimiser step as `lerobot_train` takes it; returns the loss."""
    factors = adapt(torch, model)
    model.train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(factors, lr=2.5e-5, betas=(0.9, 0.95), weight_decay=0.01)
    *inputs, actions = batch

    def step() -> Any:
        noise, moment = (
            model.sample_noise(actions.shape, device),
            model.sample_time(len(actions), device),
        )
        with torch.autocast(device.split(':')[0], dtype=torch.bfloat16):
            loss = forward(*inputs, actions, noise, moment).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(torch: Any, step: Any, flags: argparse.Namespace) -> dict[str, Any]:
    """First call, two that warm up, then the median of as many as --repeat and --seconds allow."""
    wait = torch.cuda.synchronize if flags.device.startswith('cuda') else lambda: None
    times: list[float] = []
    while len(times) < 3 + flags.repeat and (len(times) < 6 or sum(times[3:]) < flags.seconds):
        start = time.perf_counter()
        loss = step()
        wait()
        times.append(time.perf_counter() - start)
    middle = statistics.median(times[3:])
    row = {
        'per_s': flags.batch / middle,
        'ms': 1e3 * middle,
        'calls': len(times) - 3,
        'first': float(loss),
    }
    row |= {'fastest_ms': 1e3 * min(times[3:]), 'slowest_ms': 1e3 * max(times[3:])}
    return row | {'compile_s': times[0] - middle if flags.mode == 'compile' else None}


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """The row."""
    torch = load('torch', 'PyTorch')
    # looks for torchvision, and must not find the stand-in
    load('transformers.utils', 'transformers')
    if importlib.util.find_spec('torchvision') is None:
        sys.meta_path.append(StandIn())
    where = ['--dtype', 'bfloat16', '--device', flags.device, '--text-length', str(PROMPT)]
    where += ['--tiny-config', str(TINY)] if flags.tiny else []
    model_flags = parse(
        ['--library', 'lerobot', '--checkpoint', str(ROOT), '--out', str(ROOT), *where]
    )
    settings = read_settings(model_flags)
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    model = build_lerobot(model_flags, settings)
    fill(torch, model, 0, flags.device)
    forward = (
        torch.compile(model.forward, mode=flags.compile_mode)
        if flags.mode == 'compile'
        else model.forward
    )
    step = make_step(
        torch, model, forward, make_batch(torch, settings, flags.batch, flags.device), flags.device
    )
    on_gpu = flags.device.startswith('cuda')
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated() / 2**30
    row = measure(torch, step, flags)
    if on_gpu:
        row |= {'start_gib': start, 'peak_gib': torch.cuda.max_memory_allocated() / 2**30}
        row |= {
            'reserved_gib': torch.cuda.max_memory_reserved() / 2**30,
            'device': torch.cuda.get_device_name(),
        }
    return row | {'torch': torch.__version__}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--mode', choices=('eager', 'compile'), default='eager')
    parser.add_argument('--compile-mode', default='max-autotune')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--repeat', type=int, default=20)
    parser.add_argument('--seconds', type=float, default=20.0)
    parser.add_argument('--device')
    parser.add_argument('--tiny', action='store_true')
    flags = parser.parse_args()
    flags.device = flags.device or ('cpu' if flags.tiny else 'cuda')
    print(json.dumps(run(flags)))


if __name__ == '__main__':
    main()
