"""TRAF and TSAC, the losses of Sigma (paper 4.2.1 and 4.2.2; docs/design.md, "Losses").

Every term is one number per window, [b]; `b` runs over all windows of a micro-batch (consecutive
windows flattened, all devices). The mean is taken once, in `combine`, with the mask. Terms whose
mean runs over fewer windows carry the ratio of the counts, so that the one masked mean gives
theirs.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.errors import UserError
from sigma_jax.nn.layers import safe_cosine, safe_norm
from sigma_jax.types import Ablation, Actions, Batch, PyTree, SigmaOutput

__all__ = [
    'LossConfig',
    'action_mse',
    'branch_errors',
    'combine',
    'hard_mask',
    'info_nce',
    'intent_loss',
    'sigma_terms',
    'tau_loss',
    'time_loss',
    'weighted_sum',
]

Terms = dict[str, Float[Array, 'b']]

BRANCHES = ('vec', 'chk', 'traj')
# term -> suffix in the paper's Table 1
COLUMNS = {'act': 'act', 'sem': 'sem', 'intent': 'int', 'tau': 'tau'}
# branch -> its error, spelled as in the paper's Tables 2 and 3
ERRORS = {'vec': 'mse_vec', 'chk': 'mse_chk', 'traj': 'mse_trj'}
EXCLUDED = -1e9  # logit of a window that is no candidate: finite, so that gradients stay finite


@dataclass(frozen=True)
class LossConfig:
    """Constants of TRAF and TSAC; the curriculum's are in `curriculum.CurriculumConfig`.

    Attributes:
      action_weights: alpha of vec, chk, traj (ours).
      hard_ratio: rho, the share of hard windows (paper, Table 1).
      lambda_hard: weight of the hard-sample term (ours).
      beta_mi: weight of InfoNCE in L_sem; fits L_sem = 0.1 ln 2 of Table 1.
      temperature: of InfoNCE (ours).
      tau_norm: weight of mean(tau^2) in L_tau (paper 4.2.2).
      lambda_collapse: weight of the collapse term in L_tau; fits that column of Table 1.
      tau_0: root mean square of tau below which that term acts; fits the same column.
      eta_var: weight of 1 - cos(tau, c_act) in L_tau; fits the same column.
      units: of action errors: 'raw' (paper) or 'normalised' (divided by action_std; ours).
      alignment_scale: common factor of the three alignment terms (1: paper).
    """

    action_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    hard_ratio: float = 0.3
    lambda_hard: float = 1.0
    beta_mi: float = 0.1
    temperature: float = 0.07
    tau_norm: float = 0.01
    lambda_collapse: float = 0.1
    tau_0: float = 1.0
    eta_var: float = 0.1
    units: str = 'normalised'
    alignment_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.units not in ('raw', 'normalised'):
            raise UserError(
                f"loss.units: expected 'raw' or 'normalised', got {self.units!r}; change the config"
            )
        if not 0 < self.hard_ratio <= 1:
            raise UserError(
                f'loss.hard_ratio: expected a share in (0, 1], got {self.hard_ratio}; '
                'change the config'
            )


def sigma_terms(
    output: SigmaOutput,
    batch: Batch,
    config: LossConfig,
    action_std: Float[Array, 'a'],
    ablation: Ablation | None = None,
) -> tuple[Terms, dict[str, Float[Array, '']]]:
    """All terms of L_total, keyed like the schedules (paper 4.2.1 and 4.2.2; docs/design.md,
    "Losses").

        act     L_act + lambda_hard * (the same over the hard set)
        sem     L_time + beta_mi L_mi
        intent  -cos(z_intent, m)
        tau     see `tau_loss`

    Args:
      output: of Sigma's forward pass; its leaves and those of `batch` may carry more leading axes
        ([b g ...]), which are flattened to one.
      batch: the windows that gave it, raw units.
      config: constants.
      action_std: standard deviation of each joint's training actions, positive, raw units.
      ablation: gates; None: all parts are there.

    Returns:
      terms: {'act', 'sem', 'intent', 'tau'}, one number a window.
      metrics: means over valid windows under the names of the paper's Table 1 (`L_act`, `L_tau`,
        `tau_rms`, ...), and `mse_vec`, `mse_chk`, `mse_trj` in raw units.
    """
    ablation = Ablation() if ablation is None else ablation
    output, batch = (
        flatten_windows(output, batch.mask.ndim),
        flatten_windows(batch, batch.mask.ndim),
    )
    mask, telepathy = batch.mask, output.telepathy
    errors = branch_errors(
        output.actions,
        batch.actions,
        batch.action_mask,
        action_std if config.units != 'raw' else None,
    )
    act = weighted_sum(errors, config.action_weights)
    hard = hard_mask(weighted_sum(errors), mask, config.hard_ratio)
    act_hard = act * over_subset(hard, mask)
    time = time_loss(
        telepathy.z_pool, output.m_prev, output.fresh | (jnp.asarray(ablation.memory) <= 0)
    )
    mi = info_nce(
        telepathy.z_pool,
        output.text_pool + output.vision_pool,
        batch.text_id,
        mask,
        config.temperature,
    )
    terms = {
        'act': act + config.lambda_hard * gated(ablation.hard, act_hard),
        'sem': time + config.beta_mi * mi,
        'intent': intent_loss(telepathy.z_intent, telepathy.memory),
        'tau': gated(ablation.tau, tau_loss(telepathy.tau, output.c_act, config)),
    }
    scalars = {f'L_{COLUMNS[key]}': value for key, value in terms.items()}
    scalars |= {'L_act_hard': act_hard, 'L_time': time, 'L_mi': mi, 'tau_rms': rms(telepathy.tau)}
    raw = branch_errors(output.actions, batch.actions, batch.action_mask)
    scalars |= {ERRORS[name]: value for name, value in raw.items()}
    metrics = {key: masked_mean(value, mask) for key, value in scalars.items()}
    return terms, metrics | {
        'hard_ratio': jnp.asarray(config.hard_ratio),
        'hard_share': masked_mean(hard, mask),
    }


def combine(
    terms: Terms,
    weights: dict[str, Float[Array, '']],
    mask: Bool[Array, 'b'],
    alignment_scale: float | Float[Array, ''] = 1.0,
) -> Float[Array, '']:
    """L_total: the masked mean of w_act L_act + alignment_scale * (sum of w_k L_k over the other
    terms).

    Args:
      terms: {term: [b]}, from `sigma_terms`.
      weights: {term: weight}, from `curriculum.evaluate`.
      mask: true for windows that count; may have leading axes.
      alignment_scale: common factor of the alignment terms; the paper's is 1.

    Returns:
      The loss.

    Raises:
      UserError: a term has no weight.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma import losses
      >>> terms = {'act': jnp.array([1.0, 3.0, 9.0]), 'tau': jnp.array([2.0, 2.0, 9.0])}
      >>> weights = {'act': jnp.array(1.0), 'tau': jnp.array(0.5)}
      >>> float(losses.combine(terms, weights, mask=jnp.array([True, True, False])))
      3.0
    """
    total = jnp.zeros(())
    for key, value in terms.items():
        if key not in weights:
            raise UserError(
                f'loss: expected terms that have a schedule, {sorted(weights)}, got {key!r}; add '
                'it to the curriculum'
            )
        total = total + weights[key] * (1.0 if key == 'act' else alignment_scale) * value
    return masked_mean(total, mask.reshape(-1))


def flatten_windows(tree: PyTree, axes: int) -> PyTree:
    """Merges the first `axes` axes of every leaf: [b g ...] -> [b*g ...].

    Args:
      tree: arrays.
      axes: how many axes become one.

    Returns:
      The same tree of reshaped leaves.
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes:]), tree)


def masked_mean(x: Float[Array, 'b'], mask: Bool[Array, 'b']) -> Float[Array, '']:
    """Mean of x where mask is true; 0 when it is true nowhere.

    Args:
      x: one number a window.
      mask: true for windows that count.

    Returns:
      The mean.
    """
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(jnp.sum(mask), 1)


def over_subset(subset: Bool[Array, 'b'], mask: Bool[Array, 'b']) -> Float[Array, 'b']:
    """Factor that turns the mean over `mask` into the mean over `subset`: n_mask / n_subset inside,
    0 outside.

    Args:
      subset: true for some of the windows in `mask`.
      mask: true for windows that count.

    Returns:
      One factor a window.
    """
    return jnp.where(subset, jnp.sum(mask) / jnp.maximum(jnp.sum(subset), 1), 0.0)


def gated(gate: float | Float[Array, ''], x: Array) -> Array:
    """x where the gate is open (> 0), else 0, with no gradient.

    Args:
      gate: an ablation gate.
      x: any array.

    Returns:
      An array of the same shape.
    """
    return jnp.where(jnp.asarray(gate) > 0, x, 0.0)


def rms(x: Float[Array, '... e'], axis: int = -1) -> Float[Array, '...']:
    """Root mean square over `axis`, with gradient 0 at 0.

    Args:
      x: any numbers.
      axis: the axis that goes.

    Returns:
      x without that axis.
    """
    return safe_norm(x, axis) / math.sqrt(x.shape[axis])


def action_mse(
    prediction: Float[Array, 'b t a'],
    target: Float[Array, 'b t a'],
    action_mask: Bool[Array, 'b t'],
    scale: Float[Array, 'a'] | None = None,
) -> Float[Array, 'b']:
    """MSE_i over the valid steps and all joints (paper 4.2.1).

    Args:
      prediction: actions, raw units.
      target: recorded actions, raw units.
      action_mask: true for valid steps.
      scale: divides the errors, such as action_std; None: none.

    Returns:
      One number a window; 0 without a valid step.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma import losses
      >>> target, mask = jnp.zeros((1, 3, 2)), jnp.array([[True, True, False]])
      >>> prediction = jnp.array([[[1.0, 1.0], [3.0, 3.0], [9.0, 9.0]]])
      >>> losses.action_mse(prediction, target, mask).tolist()
      [5.0]
    """
    error = prediction - target if scale is None else (prediction - target) / scale
    square = jnp.sum(jnp.where(action_mask[..., None], jnp.square(error), 0.0), axis=(-2, -1))
    return square / jnp.maximum(jnp.sum(action_mask, axis=-1) * target.shape[-1], 1)


def branch_errors(
    actions: Actions,
    target: Float[Array, 'b t a'],
    action_mask: Bool[Array, 'b t'],
    scale: Float[Array, 'a'] | None = None,
) -> Terms:
    """MSE_ij of the paper's three branches against the first 1, c and t recorded steps (paper
    4.2.1).

    Args:
      actions: the three branches, raw units.
      target: recorded actions, raw units.
      action_mask: true for valid steps.
      scale: divides the errors, such as action_std; None: none.

    Returns:
      {'vec', 'chk', 'traj'}, one number a window each.
    """
    predictions = {'vec': actions.vec[..., None, :], 'chk': actions.chk, 'traj': actions.traj}
    return {
        name: action_mse(x, target[..., : x.shape[-2], :], action_mask[..., : x.shape[-2]], scale)
        for name, x in predictions.items()
    }


def weighted_sum(errors: Terms, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Float[Array, 'b']:
    """sum_j alpha_j MSE_ij; with unit weights the difficulty h_i (paper 4.2.1).

    Args:
      errors: {'vec', 'chk', 'traj'}, from `branch_errors`.
      weights: alpha of vec, chk and traj.

    Returns:
      One number a window.
    """
    parts = [weight * errors[name] for name, weight in zip(BRANCHES, weights, strict=True)]
    return parts[0] + parts[1] + parts[2]


def hard_mask(
    difficulty: Float[Array, 'b'], mask: Bool[Array, 'b'], ratio: float
) -> Bool[Array, 'b']:
    """H: the ceil(ratio * n_valid) most difficult valid windows (paper 4.2.1).

    They are chosen by rank; of equal ones the lower index comes first. The count is read from a
    table over n_valid, which is traced: computed in float32, ceil(0.3 * 20) may be 7.

    Args:
      difficulty: h_i; no gradient goes through it. NaN counts as most difficult.
      mask: true for valid windows.
      ratio: rho.

    Returns:
      True for the windows of H.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma import losses
      >>> difficulty = jnp.array([0.1, 0.9, 0.5, 7.0])
      >>> losses.hard_mask(difficulty, jnp.array([True, True, True, False]), ratio=0.3).tolist()
      [False, True, False, False]
    """
    size = difficulty.shape[0]
    counts = jnp.asarray([math.ceil(round(ratio * n, 9)) for n in range(size + 1)])
    score = jnp.where(
        mask,
        jnp.nan_to_num(jax.lax.stop_gradient(difficulty), nan=jnp.inf, posinf=jnp.inf),
        -jnp.inf,
    )
    order = jnp.argsort(-score, stable=True)
    rank = jnp.zeros(size, order.dtype).at[order].set(jnp.arange(size, dtype=order.dtype))
    return (rank < counts[jnp.sum(mask)]) & mask


def time_loss(
    z_pool: Float[Array, 'b d'], m_prev: Float[Array, 'b d'], fresh: Bool[Array, 'b']
) -> Float[Array, 'b']:
    """L_time = 1 - cos(z_pool, stop_gradient(m_prev)); 0 where there is no memory yet
    (docs/design.md, "Losses").

    Windows without a memory count as zeros in the mean: with single windows, as in the paper,
    L_time vanishes.

    Args:
      z_pool: mean of the window's semantic factors.
      m_prev: memory before the window.
      fresh: true where that memory has just been reset.

    Returns:
      One number a window, 0 to 2.
    """
    return jnp.where(fresh, 0.0, 1.0 - safe_cosine(z_pool, jax.lax.stop_gradient(m_prev)))


def info_nce(
    z_pool: Float[Array, 'b d'],
    context: Float[Array, 'b d'],
    text_id: Int[Array, 'b'],
    mask: Bool[Array, 'b'],
    temperature: float = 0.07,
) -> Float[Array, 'b']:
    """L_mi = -log softmax_j(cos(z_i, context_j) / temperature) at j = i (paper 4.2.2).

    The candidates j of window i are i itself and all valid windows with another text: the context
    of a window with the same text holds the same text, so it is left out of the denominator. A
    batch with one text gives exactly 0; two texts that cannot be distinguished give ln 2 (Table 1's
    L_sem is 0.1 ln 2).

    Args:
      z_pool: mean of each window's semantic factors.
      context: what it is to be recognised by: text pool + vision pool.
      text_id: number of each window's task text.
      mask: true for valid windows.
      temperature: divides the cosines.

    Returns:
      One number a window; 0 on padding.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma import losses
      >>> same, mask = jnp.ones((2, 4)), jnp.array([True, True])
      >>> losses.info_nce(same, same, text_id=jnp.array([0, 1]), mask=mask).round(3).tolist()
      [0.693..., 0.693...]
      >>> losses.info_nce(same, same, text_id=jnp.array([0, 0]), mask=mask).tolist()
      [0.0, 0.0]
    """
    cosine = jnp.einsum(
        'id,jd->ij', unit(z_pool), unit(context), precision=jax.lax.Precision.HIGHEST
    )
    itself = jnp.eye(mask.shape[0], dtype=bool)
    candidate = itself | (mask[None, :] & (text_id[:, None] != text_id[None, :]))
    logits = jnp.where(candidate, cosine / temperature, EXCLUDED)
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.diagonal(logits)
    return jnp.where(mask, loss, 0.0)


def unit(x: Float[Array, 'b d']) -> Float[Array, 'b d']:
    """x / |x|; zero rows stay zero, with gradient zero.

    Args:
      x: one vector a row.

    Returns:
      Vectors of length 1 or 0.
    """
    norm = safe_norm(x, keepdims=True)
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1.0), 0.0)


def intent_loss(z_intent: Float[Array, 'b d'], memory: Float[Array, 'b d']) -> Float[Array, 'b']:
    """L_intent = -cos(z_intent, m) (paper 4.2.2: aligned in direction).

    Args:
      z_intent: intent of the window.
      memory: m, after the window.

    Returns:
      One number a window, -1 to 1.
    """
    return -safe_cosine(z_intent, memory)


def tau_loss(
    tau: Float[Array, 'b e'], c_act: Float[Array, 'b e'], config: LossConfig
) -> Float[Array, 'b']:
    """The loss of the telepathy factor (paper 4.2.2; docs/design.md, "Losses").

        L_tau = 0.01 mean(tau^2) + lambda_collapse max(0, tau_0 - rms(tau))^2
                + eta_var (1 - cos(tau, c_act))

    The paper's norms are means over dimensions here: only those fit the last row of its Table 1.

    Args:
      tau: telepathy factor.
      c_act: action condition.
      config: 0.01 (`tau_norm`), `lambda_collapse`, `tau_0` and `eta_var`.

    Returns:
      One number a window.

    Examples:
      >>> import jax.numpy as jnp
      >>> from sigma_jax.sigma import losses
      >>> tau = jnp.full((1, 64), 5.653)  # the last row of the paper's Table 1
      >>> float(losses.tau_loss(tau, tau, losses.LossConfig())[0])
      0.319...
    """
    collapse = jnp.square(jax.nn.relu(config.tau_0 - rms(tau)))
    direction = 1.0 - safe_cosine(tau, c_act)
    norm = jnp.mean(jnp.square(tau), axis=-1)
    return config.tau_norm * norm + config.lambda_collapse * collapse + config.eta_var * direction


def __dir__() -> list[str]:
    """The public names."""
    return __all__
