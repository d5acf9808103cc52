"""What `benchmarks/train.py` measures of ours: steps and sampler calls with random weights, built
as any run is.

A case is built from `configs/defaults.py` by `training.build`, `materialise` and `step`, as
`train.py` builds a run; only weights and batch are random. Weights are made on the host and stored
as `config.quant` says, so that the device never holds more than they take there.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from configs import defaults
from sigma_jax import trees, xla
from sigma_jax.backbones import pi05
from sigma_jax.convert.load_base import Base
from sigma_jax.processing.actions import unnormalize_actions
from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.training import build as assembly
from sigma_jax.training.compilation import gc_disabled
from sigma_jax.training.config import RunConfig
from sigma_jax.training.materialise import make_trainable, store_base
from sigma_jax.training.optimizer import make_optimizer
from sigma_jax.training.step import init_state, make_step
from sigma_jax.types import ActionScaling, Batch, Frozen, Observation, PyTree

VIEWS, PROMPT, TEXT, JOINTS = 2, 200, 24, 6
BLOCK = 4_194_301  # a prime: repeated, it lines up with no row of a matrix
BOTH = (r'.*/attn/(q|kv|attn_vec)_einsum(_1)?/w',)  # q, k, v, o of language model and action expert
FULL_SIGMA = {
    'num_visual': 64,
    'action_width': 512,
    'heads': 8,
    'action_heads': 8,
    'dtype': 'bfloat16',
}
TINY_SIGMA = {
    'num_visual': 4,
    'action_width': 16,
    'heads': 4,
    'action_heads': 4,
    'trajectory_blocks': 1,
}
EXPERT = {'width': 32, 'depth': 2, 'mlp_dim': 64, 'heads': 8, 'kv_heads': 1, 'head_dim': 16}
TINY_MODEL = {
    'vision': {'width': 32, 'depth': 2, 'mlp_dim': 64, 'heads': 2, 'patch': 14, 'image_size': 28},
    'language': EXPERT | {'width': 64, 'mlp_dim': 128},
    'expert': EXPERT | {'adaptive': True},
    'vocab_size': 512,
    'action_dim': 8,
    'sample_steps': 2,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table; `batch` counts windows a step, `windows` consecutive ones a
    sequence.
    """

    kind: str  # 'lora', 'sigma', 'baselines', 'sampler'
    batch: int
    windows: int = 1
    remat: str = 'save_attention'
    base: str = 'bf16'
    tiny: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled case. `start()` runs it once and gives a number that must be finite, `wait()`
    until it has run.
    """

    start: Callable[..., jax.Array]  # of training: takes another batch of the same shapes
    wait: Callable[[], Any]
    compile_s: float
    compiled: Any
    flops: float  # of one run, by the arithmetic of `model_flops`

    def call(self) -> float:
        """One run, synchronised."""
        number = self.start()
        self.wait()
        return float(number)


def settings(case: Case) -> dict:
    """The config of a case."""
    c = defaults.get_config().to_dict()
    c['triton'] = case.kind == 'lora'  # as configs/pi05_lora.py
    c['model'] |= {'dtype': 'bfloat16', 'remat': None if case.remat == 'none' else case.remat}
    c['model'] |= TINY_MODEL if case.tiny else {}
    if case.kind == 'sigma':
        c['sigma'] |= TINY_SIGMA if case.tiny else FULL_SIGMA
    else:
        c |= {'objective': 'flow_matching', 'trainable': ('lora',)}
        c['lora']['patterns'] = BOTH
    c['quant'] |= {'kind': 'bfloat16' if case.base == 'bf16' else case.base} | (
        {'tile': 16} if case.tiny else {}
    )
    return c


def random_params(config: pi05.Pi05Config) -> PyTree:
    """bfloat16 weights in the host's memory, with the spread of a real initialisation."""
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32)

    def leaf(shape: tuple[int, ...]) -> np.ndarray:
        fan_in, out = shape[-2] if len(shape) > 1 else 1, np.empty(shape, jnp.bfloat16)
        scaled, flat = (block * (0.5 * fan_in**-0.5)).astype(jnp.bfloat16), out.reshape(-1)
        for start in range(0, out.size, BLOCK):
            flat[start : start + BLOCK] = scaled[: out.size - start]
        return out

    return jax.tree.map(lambda like: leaf(like.shape), pi05.abstract_params(config))


def random_batch(config: pi05.Pi05Config, case: Case) -> Batch:
    """Windows [b g] of six joints: two views, 200 prompt tokens, 24 text tokens, actions as long as
    pi0.5's.
    """
    lead, size = (case.batch // case.windows, case.windows), config.vision.image_size
    keys = iter(jax.random.split(jax.random.key(1), 6))
    actions = jax.random.normal(next(keys), (*lead, config.action_horizon, JOINTS))
    number = jnp.arange(case.batch).reshape(lead)
    observation = Observation(
        images=jax.random.bits(next(keys), (*lead, VIEWS, size, size, 3), jnp.uint8),
        image_mask=jnp.ones((*lead, VIEWS), bool),
        prompt=jax.random.randint(next(keys), (*lead, PROMPT), 0, config.vocab_size),
        prompt_mask=jnp.ones((*lead, PROMPT), bool),
        text=jax.random.randint(next(keys), (*lead, TEXT), 0, config.vocab_size),
        text_mask=jnp.ones((*lead, TEXT), bool),
        state=jax.random.uniform(next(keys), (*lead, JOINTS), minval=-1.0),
    )
    return Batch(
        observation=observation,
        actions=actions,
        action_mask=jnp.ones(actions.shape[:-1], bool),
        base=actions + jax.random.normal(next(keys), actions.shape),
        reset=jnp.zeros(lead, bool).at[:, 0].set(True),
        mask=jnp.ones(lead, bool),
        text_id=number % 2,
        episode=number // case.windows,
        frame=number % case.windows,
    )


def random_scaling() -> ActionScaling:
    """Of joints that all move in [-1, 1]."""
    zeros, ones = jnp.zeros(JOINTS), jnp.ones(JOINTS)
    span = 2 * ones
    return ActionScaling(
        ones, low=-ones, span=span, relative=zeros, state_low=-ones, state_span=span
    )


def build(case: Case, batch: Batch | None = None) -> Program:
    """The compiled program of a case, its weights and its batch, `batch` or a random one, on the
    device.
    """
    config = RunConfig.from_dict(settings(case))
    sizes = cast(pi05.Pi05Config, config.model.build(config.lora))
    batch = jax.device_put(random_batch(sizes, case) if batch is None else batch)
    objective = assembly.make_objective(config, sizes, batch)
    params = store_base(config, Base(sizes, random_params(sizes), 'random'), objective)
    base, frozen = (
        Base(sizes, pi05.abstract_params(sizes), 'random'),
        Frozen(params, random_scaling()),
    )
    flops = model_flops(case, sizes, config.sigma)
    if case.kind in ('lora', 'sigma'):
        return training_program(config, base, objective, frozen, batch, flops)
    return sampler_program(base, frozen, batch, flops)


def compiled(
    function: Callable, *inputs: Any, triton: bool = False, **options: Any
) -> tuple[Any, float]:
    """(the program, seconds to trace and compile it)."""
    start = time.perf_counter()
    with gc_disabled():
        program = xla.jit(function, triton, **options).lower(*inputs).compile()
    return program, time.perf_counter() - start


def training_program(
    config: RunConfig, base: Base, objective: Any, frozen: Frozen, batch: Batch, flops: float
) -> Program:
    """The step that `train.py` compiles, state donated."""
    trainable, frozen = make_trainable(config, base, objective, frozen, batch)
    optimizer = make_optimizer(config.optimizer)
    holder = [init_state(0, trainable, optimizer)]
    gates = assembly.make_ablation(config)
    del trainable  # donated with the first step: only the holder may keep it
    compiling: dict[str, Any] = {'donate_argnums': 0, 'triton': config.triton}
    step, seconds = compiled(
        make_step(objective, optimizer), holder[0], frozen, batch, gates, **compiling
    )

    def start(batch: Batch = batch) -> jax.Array:
        holder[0], metrics = step(holder[0], frozen, batch, gates)
        return metrics['loss']

    return Program(start, lambda: jax.block_until_ready(holder[0]), seconds, step, flops)


def sampler_program(base: Base, frozen: Frozen, batch: Batch, flops: float) -> Program:
    """Actions in raw units for every window, as the baselines of `prepare_data.py`."""
    observation = jax.tree.map(lambda x: x[:, 0], batch.observation)
    keys = jax.random.split(jax.random.key(2), batch.mask.shape[0])

    def sample(params, keys, observation):
        return unnormalize_actions(
            base.spec.bind(base.config, params).sample_actions(keys, observation), frozen.scaling
        )

    program, seconds = compiled(sample, frozen.params, keys, observation)
    holder: list = [None]

    def start() -> jax.Array:
        holder[0] = program(frozen.params, keys, observation)
        return jnp.abs(holder[0]).mean()

    return Program(start, lambda: jax.block_until_ready(holder[0]), seconds, program, flops)


def model_flops(case: Case, config: pi05.Pi05Config, sigma: SigmaConfig) -> float:
    """Operations of one call: 2 x parameters x tokens for image encoder, language model and action
    expert.

    A training step counts the language model three times (forward, again for rematerialisation,
    gradient of the
    activations: the weights have none) and the frozen image encoder once. Attention's own products
    (3 % at these lengths), adaptive norms and Sigma's heads are left out, so a share of the ceiling
    is rather low than high.
    """
    sizes = {path: leaf.size for path, leaf in trees.flatten(pi05.abstract_params(config)).items()}
    layers = {
        path: n for path, n in sizes.items() if '/llm/layers/' in path and '/Dense_0/' not in path
    }
    expert = sum(n for path, n in layers.items() if '_1/' in path or path.endswith('_1'))
    language, image = (
        sum(layers.values()) - expert,
        sum(n for path, n in sizes.items() if '/img/' in path),
    )
    seen = VIEWS * config.vision.tokens
    once = 2 * image * seen
    if case.kind == 'sigma':
        tokens = TEXT + sigma.num_visual + sigma.num_state
        return case.batch * (once + 3 * 2 * 2 * language * tokens)  # two passes
    acting = 2 * expert * config.action_horizon
    reading = 2 * language * (seen + PROMPT)
    if case.kind == 'lora':
        return case.batch * (once + 3 * (reading + acting))
    return case.batch * (once + reading + config.sample_steps * acting)
