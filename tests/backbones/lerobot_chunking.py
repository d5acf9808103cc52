"""What LeRobot computes for chunks that go on from the one before: `python
tests/backbones/lerobot_chunking.py OUT.npz`, with a Python that has LeRobot 0.6.1 and PyTorch.

Needs nothing of this project but its files: the sizes, weights and inputs of tests/data/pi05_tiny,
and what tools/ has to build LeRobot's policy at those sizes. `tests/data/chunking/lerobot.npz` is
such an OUT.npz, see the README.md beside it.
"""

import argparse
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / 'tests/data/pi05_tiny'
STEPS, WIDTH, FLOW_STEPS = 8, 3, 5
SCHEDULES = ('linear', 'exp', 'ones', 'zeros')
CASES = ((0, 8), (2, 6), (3, 3), (4, 2), (0, 0))  # (delay, horizon)
BETA, DELAY, HORIZON = 5.0, 2, 6
# (name, schedule, delay, horizon, largest weight) of the whole policy's chunks
CHUNKS = (
    ('exp', 'exp', 3, 7, 5.0),
    ('linear', 'linear', 2, 10, 10.0),
    ('none', 'zeros', 0, 7, 5.0),
)
LEFT = 7  # steps that are left over of the policy's earlier chunk, of 6 numbers


def inputs() -> dict[str, np.ndarray]:
    """Matrices of the fields, noise and an earlier chunk."""
    rng = np.random.default_rng(0)
    shapes = {
        'linear': (WIDTH, WIDTH),
        'quadratic': (WIDTH, WIDTH, WIDTH),
        'noise': (2, STEPS, WIDTH),
        'earlier': (2, STEPS, WIDTH),
        'left': (3, LEFT, 6),
    }
    small = {'quadratic': 0.15}  # a strong one drives x to infinity
    return {
        name: np.float32(small.get(name, 0.5) * rng.standard_normal(shape))
        for name, shape in shapes.items()
    }


def field(torch, name: str, given: dict):
    """x [b t a], time [b] -> velocity: x A, or with (x B) x beside it, more of it late."""

    def velocity(x, time):
        v = x @ given['linear']
        if name == 'quadratic':
            v = v + torch.einsum('bti,ijk,btj->btk', x, given['quadratic'], x)
        return v * (2 - time[:, None, None])

    return velocity


def processor(schedule: str, beta: float):
    """LeRobot's guidance."""
    from lerobot.configs import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.policies.rtc.modeling_rtc import RTCProcessor

    kind = RTCAttentionSchedule[schedule.upper()]
    return RTCProcessor(RTCConfig(prefix_attention_schedule=kind, max_guidance_weight=beta))


def of_fields(torch, given: dict) -> dict:
    """Weights, and chunks sampled from the fields."""
    from lerobot.policies.common.flow_matching import euler_integrate

    found = {}
    for schedule in SCHEDULES:
        guide = processor(schedule, BETA)
        weights = [guide.get_prefix_weights(*case, STEPS) for case in CASES]
        found[f'weights_{schedule}'] = torch.stack(weights)
        for name in ('linear', 'quadratic'):
            found[f'{name}_{schedule}'] = euler_integrate(
                field(torch, name, given),
                given['noise'],
                FLOW_STEPS,
                rtc_processor=guide,
                rtc_enabled=True,
                inference_delay=DELAY,
                prev_chunk_left_over=given['earlier'],
                execution_horizon=HORIZON,
            )
    return found


def of_policy(torch, left) -> dict:
    """Chunks of LeRobot's pi0.5 with the golden weights."""
    sys.path.insert(0, str(ROOT / 'tools'))
    import fixture_inputs
    import fixture_torch
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    flags = argparse.Namespace(
        library='lerobot', checkpoint=TINY / 'lerobot.safetensors', tiny_config=TINY / 'config.json'
    )
    flags.dtype, flags.device = 'float32', 'cpu'
    flags.action_dim = flags.action_horizon = flags.steps = flags.text_length = None
    model = fixture_torch.build_lerobot(flags, fixture_inputs.read_settings(flags)).eval()
    fixture_torch.fill(model, flags.checkpoint)
    model.config.rtc_config = RTCConfig()  # without one it samples freely
    i = {key: torch.from_numpy(x) for key, x in np.load(TINY / 'inputs.npz').items()}
    images = [i[name].permute(0, 3, 1, 2) for name in ('cam0', 'cam1')]
    prefix = (images, [i['cam0_mask'], i['cam1_mask']], i['tokens'].long(), i['token_mask'])
    found = {}
    for name, schedule, delay, horizon, beta in CHUNKS:
        model.rtc_processor = processor(schedule, beta)
        found[f'policy_{name}'] = model.sample_actions(
            *prefix,
            noise=i['sample_noise'],
            inference_delay=delay,
            prev_chunk_left_over=left,
            execution_horizon=horizon,
        )
    return found


def main(out: str) -> None:
    """Writes inputs and what comes of them."""
    import torch

    torch.set_num_threads(1)  # several have given wrong results on some CPUs
    arrays = inputs()
    given = {name: torch.from_numpy(x) for name, x in arrays.items()}
    found = of_fields(torch, given) | of_policy(torch, given['left'])
    np.savez(out, **arrays, **{name: x.detach().numpy() for name, x in found.items()})


if __name__ == '__main__':
    main(sys.argv[1])
