"""The tiny pi0.5 of this repository, trained from nothing by flow matching on the mixed-task
episodes.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """The run that made assets/pi05_tiny, which is its running average at step 3000."""
    c = defaults.get_config()
    c.objective = 'flow_matching'
    c.trainable = ('params',)
    c.shards = 'runs/mix/shards'
    c.stats_from = 'shards'
    # all but the gripper, as openpi does for arms
    c.relative_joints = (True, True, True, True, True, False)
    c.state_noise = 0.02  # 60 episodes hold few of the (joint, number) pairs; neighbours must serve
    c.steps = 9000
    c.batch_size = 32
    c.sequence_length = 1
    c.ema = 0.995
    c.log.every = 100
    c.checkpoint.every = 500
    c.checkpoint.keep = 20
    c.optimizer.params_rate = 1.5e-3
    c.optimizer.warmup_steps = 200
    c.optimizer.weight_decay = 0.1
    c.model.vision = ConfigDict(
        {'width': 64, 'depth': 3, 'mlp_dim': 160, 'heads': 4, 'patch': 14, 'image_size': 56}
    )
    c.model.language = ConfigDict(
        {'width': 96, 'depth': 3, 'mlp_dim': 288, 'heads': 4, 'kv_heads': 1, 'head_dim': 32}
    )
    c.model.expert = ConfigDict(
        {
            'width': 64,
            'depth': 3,
            'mlp_dim': 192,
            'heads': 4,
            'kv_heads': 1,
            'head_dim': 32,
            'adaptive': True,
        }
    )
    c.model.vocab_size = 640
    c.model.action_dim = 8
    c.model.action_horizon = 16
    c.model.sample_steps = 10
    return c
