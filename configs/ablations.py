"""Rows for `train.py --config.ablations=configs/ablations.py`: Sigma, and Sigma without one of its
parts (docs/design.md, "Ablations").

A row is a name and the gates it changes; `types.Ablation` explains the gates. All rows have the
same shapes, so that they share one program; what changes shapes or the frozen policy is a config of
its own.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Twelve rows, five seeds."""
    rows = {
        'sigma': {},  # everything on
        # tau = 0 downstream of pass 1: same capacity, no telepathy (the decisive contrast)
        'no_tau': {'tau': 0.0},
        # one learned tau for every input: is it what tau says, or that it is there?
        'tau_const': {'tau_const': 1.0},
        'no_film': {'film': 0.0},  # v_mod = v_base: tau reaches the action workspace alone
        'no_memory': {'memory': 0.0},  # m_prev = 0: every window starts anew
        'no_residual': {'residual': 0.0},  # actions from nothing instead of residuals on a_base
        'ramp_half': {'ramp_speed': 0.5},  # TSAC's weights rise half as fast
        'ramp_double': {'ramp_speed': 2.0},  # ... twice as fast
        # ... stand at their ends from the first step on
        'ramp_at_once': {'ramp_speed': float('inf')},
        'no_hard': {'hard': 0.0},  # TRAF without its hard-sample term
        'no_lora': {'lora': 0.0},  # the language model as it was
        # residual heads on pi0.5's features, without the rest
        'heads_only': {'tau': 0.0, 'film': 0.0, 'memory': 0.0},
    }
    c = ConfigDict()
    # each its own initialisation, dropout and refinement noise; batches in one order for all
    c.seeds = (0, 1, 2, 3, 4)
    c.at_once = 0  # members a device computes at a time; 0: what suits it
    c.rows = tuple(rows.items())  # a ConfigDict would sort them
    return c
