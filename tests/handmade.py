"""Hand-made windows with known errors, and a stand-in model, for the tests of evaluation and
report.
"""

import numpy as np

from sigma_jax.types import Actions, SigmaOutput, Telepathy

JOINTS, HORIZON, CHUNK, LENGTH = 2, 4, 2, 3
# base - truth, an episode each
OFFSETS = {'train': (1.0, 1.0), 'calibration': (1.0, 2.0), 'test': (1.0, 3.0)}
FIRST_EPISODE = {'train': 0, 'calibration': 10, 'test': 20}
REPAIRED = 0.5  # of the base's offset, by the stand-in Sigma


def make_batch(split, windows=LENGTH):
    """Two episodes as sequences [b=2 g]; the last window of the second is padding.

    Truth is a line over frame, step and joint; the state lies 2 below the first true action.
    """
    frame = np.arange(windows) * HORIZON
    line = frame[:, None] + np.arange(HORIZON)
    truth = np.stack([line, 10.0 - line], axis=-1)[None].repeat(2, axis=0)
    offset = np.asarray(OFFSETS[split])[:, None, None, None]
    mask = np.ones((2, windows), bool)
    mask[1, -1] = False
    reset = np.zeros((2, windows), bool)
    reset[:, 0] = True
    return {
        'actions': truth,
        'action_mask': np.ones(truth.shape[:3], bool),
        'base': truth + offset,
        'state': truth[:, :, 0] - 2.0,
        'mask': mask,
        'reset': reset,
        'episode': FIRST_EPISODE[split] + np.arange(2)[:, None].repeat(windows, axis=1),
        'frame': frame[None].repeat(2, axis=0),
    }


def run_windows(batch, ablation):
    """Repairs half of the offset where telepathy is on; tau = (3, 4) times the windows since the
    last reset.
    """
    gate = float(ablation.tau)
    traj = batch['base'] - REPAIRED * gate * (batch['base'] - batch['actions'])
    index = np.arange(batch['mask'].shape[1])
    since = index - np.maximum.accumulate(np.where(batch['reset'], index, 0), axis=1) + 1
    tau = since[..., None] * np.asarray([3.0, 4.0])
    actions = Actions.from_trajectory(traj, CHUNK)
    vector = np.ones((*batch['mask'].shape, 2))
    telepathy = Telepathy(vector[..., None, :], vector, vector, vector, vector, vector, vector, tau)
    text = vector * np.asarray([1.0, 0.0])
    return SigmaOutput(actions, actions, telepathy, vector, batch['reset'], tau, tau, text, vector)
