"""Shards of the embedded SO-101 pick-and-place data set. Every default of prepare_data.py, with its
origin.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of prepare_data.py."""
    data = ConfigDict()
    # a folder of LeRobot (v2.1, v3.0), RLDS or .pt shards, or a hub id: 'owner/name',
    # 'owner/name@revision'
    data.source = 'assets/so101_pickplace'  # LeRobot v3.0 (ours: recorded in simulation)
    # holds HF_TOKEN; '': the environment has it, or .env or sigma.env (the paper's)
    data.env_file = ''
    # pairs (our name, the data set's), where cameras should be called otherwise
    data.camera_map = ()
    # columns of a LeRobot data set, as its meta/info.json calls them; 'a,b' puts two side by side
    # (LeRobot's names)
    data.state_column = 'observation.state'  # openpi's conversions: 'state'
    data.action_column = 'action'  # openpi's conversions: 'actions'
    # for RLDS: fps, and columns; sigma_jax/data/rlds/open.py names all settings and their defaults
    data.rlds = {}
    # for .pt shards of others: fps, keys, channels_first (sigma_jax/data/pt/shards.py)
    data.torch_shards = {}
    # order of the model's views (names as in svla_so101_pickplace)
    data.cameras = ('observation.images.up', 'observation.images.side')
    # single-channel image features and depth maps in video, such as
    # ('observation.images.up_depth',)
    data.depth = ()
    # metres a unit in the shards, and in 16-bit images whose data set states none (ours: as
    # RealSense cameras store)
    data.depth_scale = 0.001
    # a column of float32 or int16 samples that end at its frame, such as 'observation.audio'
    data.audio = ''
    data.audio_rate = 16000  # samples a second (ours; recorded in meta.json)
    # pixels a side, as the base takes them: 224 for pi0.5, 56 for the tiny one of this repository
    data.image_size = 56
    # 'openpi' (smooths when shrinking) or 'lerobot'; '': as the base does, without one openpi's
    data.resize = ''
    data.horizon = 16  # actions a window (paper 4.1)
    data.chunk = 8  # actions of `chk`, the first of the window (ours; the paper does not say)
    data.stride = 4  # frames from window to window (ours; the paper's 723 windows come from 16)
    # mean |a_{t+1} - a_t| in joint units below which a training window is dropped (ours)
    data.min_motion = 0.05
    # the paper's filter on the mean action norm; filters nothing on absolute positions
    data.min_action_norm = 0.0
    data.tail = 'drop'  # windows over an episode's end: 'drop' (paper) or 'pad'
    data.shard_size = 512  # windows a file (ours)
    # train, calibration, test, by episode (ours; the paper has one split)
    data.split_fractions = (0.6, 0.2, 0.2)
    data.split_seed = 0
    data.train_episodes = ()  # explicit lists replace the fractions
    data.calibration_episodes = ()
    data.test_episodes = ()
    # or 'skip': leaves out what cannot be read, recorded in meta.json; reads videos twice
    data.on_bad_episode = 'error'
    # a norm_stats.json to use instead of this data's own, such as a checkpoint's
    data.stats_from = ''
    # checks text lengths here; '' leaves that to training
    data.tokenizer = 'assets/tokenizer/tokenizer.json'
    data.max_prompt_len = 48  # tokens; pi0.5's is 200, ours fits the small tokenizer
    data.max_text_len = 16  # tokens of the task alone (ours)
    data.state_dim = 6  # joints of the arm; 0 takes any width up to 32
    # states in the prompt: 0 the robot's own (openpi), 32 pads (LeRobot), -1 none
    data.prompt_state_dim = 0
    baselines = ConfigDict()
    baselines.base = ''  # a converted pi0.5, sampled on every window; '' leaves the baselines out
    baselines.tokenizer = 'assets/tokenizer/tokenizer.json'  # the one the base was trained with
    baselines.samples = 1  # draws a window; more allow the mean of several as a method (ours)
    baselines.seed = 0  # noise is keyed by seed, episode, frame and draw
    baselines.batch_size = 32
    baselines.dtype = 'float32'  # 'bfloat16' on a GPU
    return ConfigDict({'data': data, 'baselines': baselines})
