"""The tiny pi0.5 of this repository, trained from nothing by flow matching on the mixed-task episodes."""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """The run that made assets/pi05_tiny (one GPU, minutes)."""
    c = defaults.get_config()
    c.objective = 'flow_matching'
    c.trainable = ('params',)
    c.shards = 'runs/mix/shards'
    c.stats_from = 'shards'
    c.steps = 20_000
    c.batch_size = 128
    c.sequence_length = 1
    c.ema = 0.999
    c.log.every = 100
    c.checkpoint.every = 5000
    c.loader.num_workers = 0  # decoded windows fit in memory; one thread serves 60 batches a second
    c.optimizer.params_rate = 1e-3
    c.optimizer.warmup_steps = 500
    c.optimizer.weight_decay = 1e-2
    c.model.vision = ConfigDict(
        {'width': 96, 'depth': 4, 'mlp_dim': 256, 'heads': 4, 'patch': 14, 'image_size': 112}
    )
    c.model.language = ConfigDict(
        {'width': 128, 'depth': 4, 'mlp_dim': 384, 'heads': 4, 'kv_heads': 1, 'head_dim': 32}
    )
    c.model.expert = ConfigDict(
        {'width': 96, 'depth': 4, 'mlp_dim': 256, 'heads': 4, 'kv_heads': 1, 'head_dim': 32, 'adaptive': True}
    )
    c.model.vocab_size = 640
    c.model.action_dim = 8
    c.model.action_horizon = 16
    c.model.sample_steps = 10
    return c
