"""Seeded random weights for LeRobot's own `PI05Pytorch`, saved as LeRobot saves them. Needs
LeRobot, no sigma_jax.

Nothing passes a comparison by being ignored: no tensor is constant, norms, biases and adaptive
norms included. Scales keep every activation of order one, queries twice that so that attention is
not flat.
"""

import argparse
import json
import pathlib
import re
import sys
import time
import zlib

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from fixture_inputs import read_settings  # noqa: E402
from fixture_library import load, say  # noqa: E402
from fixture_torch import HEAD, TABLE, UNUSED, build_lerobot  # noqa: E402
from make_fixture import parse  # noqa: E402

# (pattern of a name, mean, deviation); None: 1 / sqrt(inputs). The first that matches holds.
SCALES = (
    (r'embed_tokens\.weight|lm_head\.weight', 0.0, None),
    (r'position_embedding\.weight', 0.0, 0.2),
    (r'norm\.dense\.bias', 0.0, 0.3),  # scale, shift and gate of an adaptive norm
    (r'norm\.dense\.weight', 0.0, None),
    (r'(layer_norm\d|post_layernorm)\.weight', 1.0, 0.1),
    (r'norm\.weight', 0.0, 0.1),  # RMSNorm multiplies by 1 + weight
    (r'\.bias', 0.0, 0.05),
    (r'.*', 0.0, None),
)


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(mean, standard deviation) of a tensor's values."""
    mean, deviation = next((m, d) for pattern, m, d in SCALES if re.search(pattern, name))
    if deviation is None:
        inputs = 1
        for size in shape[1:]:
            inputs *= size
        deviation = inputs**-0.5 * (2.0 if 'q_proj' in name else 1.0)
    return mean, deviation


def fill(torch, model, seed: int, device: str) -> None:
    """Random values by name and seed, whatever the order of the parameters."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            generator = torch.Generator(device).manual_seed(seed + zlib.crc32(name.encode()))
            mean, deviation = spread(name, tuple(tensor.shape))
            tensor.copy_(
                torch.randn(tensor.shape, generator=generator, device=device) * deviation + mean
            )
        state = model.state_dict()
        head, table = (next(key for key in state if key.endswith(end)) for end in (HEAD, TABLE))
        state[head].copy_(state[table])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', required=True, type=pathlib.Path, help='folder to write')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--tiny-config')
    flags = parser.parse_args()
    arguments = ['--library', 'lerobot', '--checkpoint', str(flags.out), '--out', str(flags.out)]
    arguments += ['--dtype', flags.dtype, '--device', flags.device]
    arguments += ['--tiny-config', flags.tiny_config] if flags.tiny_config else []
    torch, saving = load('torch', 'PyTorch'), load('safetensors.torch', 'safetensors')
    model_flags = parse(arguments)
    settings = read_settings(model_flags)
    start = time.perf_counter()
    model = build_lerobot(model_flags, settings)
    fill(torch, model, flags.seed, flags.device)
    say(f'random weights in {time.perf_counter() - start:.1f} s')
    start = time.perf_counter()
    flags.out.mkdir(parents=True)
    tensors = {
        f'model.{name}': x.detach().cpu().clone().contiguous()
        for name, x in model.state_dict().items()
    }
    assert any(name.endswith(UNUSED) for name in tensors), (
        'the expert of LeRobot keeps a head that nobody reads'
    )
    saving.save_file(tensors, flags.out / 'model.safetensors', metadata={'format': 'pt'})
    config = {'type': 'pi05', 'dtype': flags.dtype, 'chunk_size': settings['action_horizon']}
    config |= {
        'max_action_dim': settings['action_dim'],
        'num_inference_steps': settings['num_steps'],
    }
    if flags.tiny_config:  # heads of a small image encoder are in no tensor
        config |= json.loads(pathlib.Path(flags.tiny_config).read_text())
    (flags.out / 'config.json').write_text(json.dumps(config, indent=1))
    size = (flags.out / 'model.safetensors').stat().st_size
    count = sum(x.numel() for x in tensors.values())
    say(
        f'{len(tensors)} tensors, {count:,} numbers, {size / 1e9:.2f} GB saved in '
        f'{time.perf_counter() - start:.1f} s'
    )


if __name__ == '__main__':
    main()
