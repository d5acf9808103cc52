"""All settings of a run as one frozen value, made once from the config of a script.

The files in configs/ explain every value; `RunConfig.from_dict` takes what they return, or what a
run has written into its config.json, with an older version too.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from sigma_jax.convert.load_base import ModelConfig
from sigma_jax.errors import UserError
from sigma_jax.nn.lora import LoraConfig
from sigma_jax.nn.quant import QuantConfig
from sigma_jax.objectives import kinds
from sigma_jax.objectives.flow_matching import RtcConfig
from sigma_jax.settings import check_choice, from_section, section
from sigma_jax.sigma.config import SigmaConfig
from sigma_jax.sigma.curriculum import CurriculumConfig
from sigma_jax.sigma.losses import LossConfig
from sigma_jax.training.grid import Grid, gates
from sigma_jax.training.optimizer import OptimizerConfig
from sigma_jax.types import Ablation

NAMED = ('objective', 'base', 'shards', 'seed', 'steps')  # by every run, of any version
# what a section's dataclass holds beside the settings: sizes of base and data, the run's own steps
DERIVED = {'sigma': ('d_model', 'state_dim', 'action_dim'), 'optimizer': ('total_steps',)}
CHOICES = {'stats_from': ('base', 'shards'), 'features': ('', 'cache')}
# numbers below which a run makes no sense; one of 0 steps is built and saved, and not trained
LEAST = dict.fromkeys(('steps', 'loader.num_workers', 'log.shares'), 0) | dict.fromkeys(
    ('accumulate', 'log.every', 'checkpoint.every', 'checkpoint.keep'), 1
)


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How windows are read.

    Attributes:
      num_workers: processes that decode; 0 decodes in threads of this one.
      cache: whether decoded windows stay in memory.
      augment: crops, turns and recolours training images as openpi does.
    """

    num_workers: int = 0
    cache: bool = True
    augment: bool = False


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is logged.

    Attributes:
      every: steps between rows (Table 1: 10).
      shares: steps between measurements of how much of the gradient norm each loss term has; 0:
        none.
    """

    every: int = 10
    shares: int = 0


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved.

    Attributes:
      every: steps between checkpoints; the last step has one too.
      keep: how many stay.
    """

    every: int = 200
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Every setting of a run; configs/defaults.py has the usual values, with their origin.

    Attributes:
      objective: 'sigma' (paper 4.2) or 'flow_matching' (pi0.5's own).
      trainable: groups of leaves that learn: of 'sigma' and 'lora', or 'lora' or 'params' alone for
        flow matching.
      base: folder of a converted pi0.5; '' starts from random weights of the sizes in `model`.
      shards: folder that `prepare_data` has written.
      tokenizer: a tokenizer.json, a sentencepiece .model or a hub id.
      stats_from: whose statistics scale prompts and policy actions: 'base' (the checkpoint's) or
        'shards'.
      relative_joints: joints whose policy actions count from the state (openpi: DeltaActions); ():
        as the base has it.
      freeze: patterns of leaves that stay as they are when the group 'params' learns.
      state_noise: spread of a jitter on the normalised state in pi0.5's prompt, while training.
      seed: of weights that are drawn, of dropout, and of the order of the data.
      steps: optimiser steps.
      batch_size: sequences a step.
      sequence_length: consecutive windows a sequence, memory carried through; the paper has 1.
      accumulate: micro-batches a step, one after the other: batch_size / accumulate sequences at a
        time.
      ema: decay of a running average of the trainable leaves; None: none kept.
      loader: how windows are read.
      features: of frozen parts (SigLIP's features, text embeddings): '' computes them in every
        step, 'cache' once, beside the shards.
      log: steps between rows of the log.
      checkpoint: steps between checkpoints, and how many stay.
      triton: on a GPU, Triton's products beside cuBLAS's.
      compilation_cache: folder of compiled programs, kept for the next start; '' keeps none.
      model: how the base computes; its sizes where `base` is ''.
      quant: in what form the frozen base lies on the device.
      lora: which leaves of the base get factors, and how strong these are.
      sigma: sizes and choices of Sigma's heads.
      loss: constants of TRAF and TSAC.
      curriculum: ramps of the weights of the alignment terms.
      rtc: chunks that go on from the one before, learned by flow matching.
      optimizer: learning rates by group, and what they share.
      ablation: gates, 1 on, 0 off.
      ablations: '' or a file such as configs/ablations.py, whose rows and seeds are trained in one
        program; of a finished one the `Grid` itself.

    Raises:
      UserError: numbers of steps, sequences or processes that are none, or a choice that there is
        not.
    """

    objective: str = 'sigma'
    trainable: tuple[str, ...] = ('sigma', 'lora')
    base: str = ''
    shards: str = ''
    tokenizer: str = 'assets/tokenizer/tokenizer.json'
    stats_from: str = 'base'
    relative_joints: tuple[bool, ...] = ()
    freeze: tuple[str, ...] = ()
    state_noise: float = 0.0
    seed: int = 0
    steps: int = 800
    batch_size: int = 4
    sequence_length: int = 4
    accumulate: int = 1
    ema: float | None = None
    loader: LoaderConfig = LoaderConfig()
    features: str = ''
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    triton: bool = False
    compilation_cache: str = ''
    model: ModelConfig = ModelConfig()
    quant: QuantConfig = QuantConfig()
    lora: LoraConfig = LoraConfig()
    sigma: SigmaConfig = SigmaConfig()
    loss: LossConfig = LossConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    rtc: RtcConfig = RtcConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ablation: Ablation = Ablation()
    ablations: str | Grid = ''

    def __post_init__(self) -> None:
        kinds.find(self.objective)
        for name, allowed in CHOICES.items():
            check_choice(f'config.{name}', getattr(self, name), allowed)
        for name, least in LEAST.items():
            value: Any = functools.reduce(getattr, name.split('.'), self)
            if value < least:
                unit = ' step' if name.endswith('every') else ''
                raise UserError(
                    f'config.{name}: expected at least {least}{unit}, got {value}; correct it'
                )
        if min(self.batch_size, self.sequence_length) < 1:
            raise UserError(
                'config: expected batch_size and sequence_length of at least 1, got '
                f'{self.batch_size} and {self.sequence_length}; correct them'
            )
        until = dataclasses.replace(self.optimizer, total_steps=self.steps)
        object.__setattr__(self, 'optimizer', until)  # its decay ends with the run, however changed

    @property
    def kind(self) -> Any:
        """What is known of its objective; see `objectives.kinds`."""
        return kinds.find(self.objective)

    @property
    def gates(self) -> dict[str, Any]:
        """Its ablation as JSON can hold it: 'inf' for a ramp without end."""
        return _plain(self.ablation)

    @property
    def windows_per_step(self) -> int:
        """Windows that one optimiser step learns from."""
        return self.batch_size * self.sequence_length

    @classmethod
    def from_dict(cls, settings: Any) -> 'RunConfig':
        """The config that a nested dictionary describes; what it lacks has its default.

        Args:
          settings: as `get_config().to_dict()` of a file in configs/, or a run's config.json.

        Returns:
          The config.

        Raises:
          UserError: an unknown key, a value of another kind, a row of another length, a value that
            makes no sense.

        Examples:
          >>> from sigma_jax.training.config import RunConfig
          >>> config = RunConfig.from_dict({'steps': 100, 'loss': {'hard_ratio': 0.5}})
          >>> config.steps, config.loss.hard_ratio, config.batch_size
          (100, 0.5, 4)
          >>> RunConfig.from_dict(config.to_dict()) == config
          True
        """
        known = section(settings, 'config')
        made = {name: make(known[name]) for name, make in _SECTIONS.items() if name in known}
        return from_section(cls, {**known, **made}, '')

    @classmethod
    def of(cls, config: 'RunConfig | Mapping[str, Any]') -> 'RunConfig':
        """A config, whether it is one already or a nested dictionary that describes one.

        Args:
          config: either.

        Returns:
          The config.

        Raises:
          UserError: as `from_dict` does.
        """
        return config if isinstance(config, cls) else cls.from_dict(config)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, as JSON can hold it: lists, and 'inf' for a ramp without end."""
        plain = json.loads(json.dumps(_plain(self)))
        for part, names in DERIVED.items():
            for name in names:
                del plain[part][name]
        return plain


def read_config(workdir: pathlib.Path) -> RunConfig:
    """The config of a training folder.

    Args:
      workdir: where train.py has written config.json.

    Returns:
      The config.

    Raises:
      UserError: no config there, a damaged one, or one without what every run has named.
    """
    file = workdir / 'config.json'
    if not file.is_file():
        raise UserError(
            f'expected a training folder at {workdir}, got no config.json in it; run train.py first'
        )
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f'expected JSON in {file}, got {error}; it is damaged: run train.py again with the '
            'same settings and workdir, which writes it anew'
        ) from error
    missing = [name for name in NAMED if not isinstance(settings, dict) or name not in settings]
    if missing:
        raise UserError(
            f'expected the settings of a run in {file}, got none of {", ".join(missing)}; name a '
            'folder that train.py has written'
        )
    return RunConfig.from_dict(settings)


def _grid(value: Any) -> str | Grid:
    return value if isinstance(value, str) else Grid.from_dict(value)


def _plain(value: Any) -> Any:
    """A config as nested dictionaries of what JSON has."""
    if isinstance(value, Grid):
        rows = {name: _plain(row) for name, row in value.rows}
        return {'rows': rows, 'order': list(rows), 'seeds': list(value.seeds)}
    if isinstance(value, ModelConfig):
        return value.to_section()
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _section(kind: type, where: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda values: from_section(kind, values, where)


_SECTIONS: dict[str, Callable[[Any], Any]] = {
    name: _section(kind, name)
    for name, kind in {
        'loader': LoaderConfig,
        'log': LogConfig,
        'checkpoint': CheckpointConfig,
        'quant': QuantConfig,
        'lora': LoraConfig,
        'sigma': SigmaConfig,
        'loss': LossConfig,
        'curriculum': CurriculumConfig,
        'rtc': RtcConfig,
        'optimizer': OptimizerConfig,
    }.items()
} | {'model': ModelConfig.from_section, 'ablation': gates, 'ablations': _grid}
