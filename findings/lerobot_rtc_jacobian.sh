#!/usr/bin/env bash
# lerobot 0.6.1: real-time chunking's guidance leaves out the policy's Jacobian.
#
# One expects: what the paper and the reference implementation that the module names (arXiv 2506.07339) compute: the error of the
#   denoised chunk, times the Jacobian of the denoised chunk by the noisy one, x - t v(x). `torch.enable_grad`, `autograd.grad`
#   and the docs ("guidance correction is computed via autograd") say so too.
# What happens: v is computed before `x_t.requires_grad_(True)`, so that for autograd v is a constant, the Jacobian the identity
#   and the correction the error itself. The guided velocity is the paper's only where v does not depend on x.
# Whom it hurts: who compares with the paper, ports it from here, or pays for the gradient: the same comes out under
#   `torch.no_grad` of v - w * error. An action is drawn to the old chunk by its own error alone: one that was not committed
#   (weight 0) is never moved by those that were, where the Jacobian would bend it along.
#
# Needs about 5 GB and some minutes: lerobot asks for PyTorch, whose Linux wheels bring CUDA.
# Usage: PYTHON=python3.12 findings/lerobot_rtc_jacobian.sh (exit status 0: it still behaves so)
set -euo pipefail
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
"${PYTHON:-python3.12}" -m venv "$DIR/env"
"$DIR/env/bin/pip" -qq install --no-compile torch==2.11.0 torchvision==0.26.0 av==15.1.0 datasets==4.8.5 draccus==0.11.6 \
  einops==0.8.2 gymnasium==1.4.0 numpy==2.2.6 opencv-python-headless==4.13.0.92 pandas==2.3.3 pyarrow==26.0.1 \
  requests==2.34.2 safetensors==0.8.0 termcolor==3.3.0
"$DIR/env/bin/pip" -qq install --no-compile --no-deps lerobot==0.6.1
export HF_HOME="$DIR/cache" HF_HUB_OFFLINE=1

cat > "$DIR/show.py" <<'END'
import platform
import sys
from importlib.metadata import version

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor

STEPS, DELAY, BETA = 8, 4, 5.0
torch.manual_seed(0)
torch.set_num_threads(1)
mix, matrix = torch.randn(STEPS, STEPS) / 3, torch.randn(3, 3) / 2
noisy, earlier = torch.randn(1, STEPS, 3), torch.randn(1, STEPS, 3)
tracked = []


def velocity(x):
    """Every step of the chunk sees all the others, as in a policy."""
    tracked.append(x.requires_grad)
    return torch.tanh(mix @ x @ matrix)


def guided(time, weights, jacobian):
    """v - w * correction, the paper's in this library's time (1 is noise)."""
    x = noisy.clone().requires_grad_(True)
    v = velocity(x)
    denoised = x - time * v
    error = weights * (earlier - denoised.detach())
    correction = torch.autograd.grad(denoised, x, error)[0] if jacobian else error
    return (v - min(BETA, ((1 - time) ** 2 + time**2) / (time * (1 - time))) * correction).detach()


print(f'python {platform.python_version()}, lerobot {version("lerobot")}, torch {torch.__version__}')
config = RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.ZEROS, max_guidance_weight=BETA)
processor = RTCProcessor(config)
weights = processor.get_prefix_weights(DELAY, STEPS, STEPS)[None, :, None]
same, paper, bent = [], [], []
for time in (0.9, 0.5, 0.1):
    tracked.clear()
    got = processor.denoise_step(noisy, earlier, DELAY, time, velocity, execution_horizon=STEPS)
    assert tracked == [False], 'v was computed with a gradient'
    apart = {name: (got - guided(time, weights, name == 'paper')).abs() for name in ('paper', 'identity')}
    free = (got - velocity(noisy)).abs()[:, DELAY:].max().item()
    print(f'time {time}: apart from the identity {apart["identity"].max():.1e}, from the Jacobian {apart["paper"].max():.2f};')
    print(f'  steps after the committed ones are moved by {free:.1e}, by the Jacobian {apart["paper"][:, DELAY:].max():.2f}')
    same.append(apart['identity'].max().item())
    paper.append(apart['paper'].max().item())
    bent.append(free)
still = max(same) < 1e-5 and min(paper) > 0.05 and max(bent) == 0.0
sys.exit(None if still else f'behaves otherwise now: identity {same}, Jacobian {paper}, free steps {bent}')
END
"$DIR/env/bin/python" "$DIR/show.py"
