"""Every setting of a run with its origin; each experiment's file changes what it needs, and nothing
else does.

Origins: (paper N) section of the Sigma paper, (Table 1) its printed rows, (openpi), (ours).
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Defaults of every run."""
    c = ConfigDict()
    c.objective = 'sigma'  # 'sigma' (paper 4.2) or 'flow_matching' (pi0.5's own)
    # groups of leaves that learn; flow matching: ('lora',) or ('params',)
    c.trainable = ('sigma', 'lora')
    # folder of a converted pi0.5; '' starts from random weights of the sizes in `model`
    c.base = ''
    c.shards = ''  # folder written by prepare_data.py
    # a tokenizer.json, a sentencepiece .model or a hub id
    c.tokenizer = 'assets/tokenizer/tokenizer.json'
    # statistics of prompts and policy actions: 'base' (the checkpoint's own) or 'shards'
    c.stats_from = 'base'
    # joints whose policy actions count from the state (openpi: DeltaActions); (): as the base
    c.relative_joints = ()
    c.freeze = ()  # patterns of leaves that stay as they are when the group 'params' learns
    # spread of a jitter on the normalised state in pi0.5's prompt, while training (ours)
    c.state_noise = 0.0
    c.seed = 0
    c.steps = 800  # optimiser steps
    c.batch_size = 4  # sequences a step
    c.sequence_length = 4  # consecutive windows a sequence, memory carried through (ours; paper: 1)
    # micro-batches a step, one after the other (ours): batch_size / accumulate sequences at a time
    c.accumulate = 1
    # decay of a running average of trainable leaves; None: none kept
    c.ema = config_dict.placeholder(float)
    # decoding processes; keep decoded windows in memory
    c.loader = ConfigDict({'num_workers': 0, 'cache': True})
    # crops, turns and recolours training images as openpi does (data/loader/augment.py)
    c.loader.augment = False
    # SigLIP's features and text embeddings: '' computes them in every step, 'cache' once, beside
    # the shards
    c.features = ''
    # steps between rows (Table 1: 10), gradient-norm fractions (0: none)
    c.log = ConfigDict({'every': 10, 'shares': 0})
    c.checkpoint = ConfigDict({'every': 200, 'keep': 2})  # steps between checkpoints, how many stay
    # on a GPU, Triton's products beside cuBLAS's: LoRA steps 3 % faster, 30 s more to compile
    c.triton = False
    # compiled programs, kept for the next start; '' keeps none
    c.compilation_cache = '~/.cache/sigma_jax'

    c.model = ConfigDict()  # how the base computes; sizes only where `base` is ''
    c.model.dtype = 'float32'  # of its matrix products; 'bfloat16' on a GPU
    # what layers keep for the backward pass: None (all), 'save_products' (activations take five
    # times the memory of the next one, a sixth faster), 'save_attention', or the name of a
    # jax.checkpoint policy
    c.model.remat = config_dict.placeholder(str)

    c.quant = ConfigDict()  # how the frozen base is stored on the device (sigma_jax/nn/quant.py)
    # 'stored': as in its folder; 'bfloat16': all but what is read in float32, with model.dtype
    # bfloat16 the same to the last bit; 'int8', 'nf4': so for the leaves of `patterns`, bfloat16
    # for the others
    c.quant.kind = 'stored'
    # the matrices of both Gemma experts (QLoRA: all linear)
    c.quant.patterns = (r'.*/llm/layers/(attn|mlp)(_1)?/.*',)
    # further leaves in int8, such as r'.*/input_embedding' and SigLIP's
    # r'.*/encoderblock/.*/kernel'
    c.quant.int8 = ()
    c.quant.tile = 64  # inputs that share one of NF4's scales (QLoRA)

    c.lora = ConfigDict()
    c.lora.patterns = (r'.*/attn/(q|kv|attn_vec)_einsum/w',)  # q, k, v, output of Gemma (paper 4.2)
    c.lora.rank = 16  # (paper 4.2)
    c.lora.alpha = 16.0  # (ours)
    c.lora.dropout = 0.05  # (ours; the paper gives no figure)

    c.sigma = ConfigDict()  # see sigma_jax/sigma/config.py for all sizes
    c.sigma.horizon = 16  # horizon_T (paper 4.1)
    c.sigma.chunk = 8  # (ours)
    c.sigma.d_tau = 64  # (derived from Table 1)
    c.sigma.num_factors = 8  # K (ours)
    c.sigma.num_visual = 64  # N_v (ours)
    c.sigma.num_state = 4  # N_s (ours)
    # pi0.5's SigLIP (ours); 'patch_embed' is the paper's plain convolution
    c.sigma.vision_encoder = 'backbone'
    # pi0.5's own token embeddings (paper 5.3); 'one_hot' is the paper's training mode
    c.sigma.text = 'embedding'
    # (paper 4.2); 'recurrent' uses the previous window's tau and one pass
    c.sigma.feedback = 'two_pass'
    # residuals on a_base (paper 4.2.1); 'none', 'internal' (paper 3.3 to the letter)
    c.sigma.fusion = 'pi05'
    c.sigma.refinement_steps = 4  # of the trajectory branch (ours)
    c.sigma.noise_scale = 0.0  # 1 starts that refinement from noise (ours)
    c.sigma.use_depth = False  # optional inputs (paper 3.1)
    c.sigma.use_audio = False

    c.loss = ConfigDict()
    c.loss.action_weights = (1.0, 1.0, 1.0)  # alpha of vec, chk, traj (ours)
    c.loss.hard_ratio = 0.3  # rho (Table 1)
    c.loss.lambda_hard = 1.0  # (ours)
    c.loss.beta_mi = 0.1  # (Table 1: L_sem = 0.1 ln 2)
    c.loss.temperature = 0.07  # (ours)
    c.loss.units = 'normalised'  # action errors divided by action_std (ours); 'raw' is the paper's
    # keeps the alignment terms under 10 % of the gradient norm (ours)
    c.loss.alignment_scale = 0.03

    c.curriculum = ConfigDict()
    c.curriculum.ramp_steps = 82  # (Table 1: the only length that gives all 42 printed weights)
    c.curriculum.sem = (0.1, 1.0)  # w_sem (Table 1)
    c.curriculum.intent = (0.1, 0.8)  # w_intent (Table 1)
    c.curriculum.tau = (0.0, 0.03)  # w_tau (Table 1)

    c.rtc = ConfigDict()
    # flow matching: most actions at a chunk's start that are given clean, so that the policy learns
    # to go on from the chunk before (arXiv 2512.05964); 0: none
    c.rtc.max_delay = 0

    c.optimizer = ConfigDict()
    c.optimizer.sigma_rate = 1e-3  # peak learning rates (ours)
    c.optimizer.lora_rate = 3e-4
    c.optimizer.params_rate = 5e-4
    c.optimizer.warmup_steps = 40
    c.optimizer.final_fraction = 0.05  # of the peak, at the last step
    c.optimizer.weight_decay = 1e-4
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.95
    c.optimizer.clip_norm = 1.0

    # a file such as configs/ablations.py: its rows and seeds are trained in one program
    c.ablations = ''
    # gates, 1 on, 0 off (tau_const the other way round); ramp_speed 2 is a ramp twice as fast, inf
    # no ramp
    gates = ('tau', 'film', 'memory', 'residual', 'lora', 'hard', 'ramp_speed')
    c.ablation = ConfigDict(dict.fromkeys(gates, 1.0) | {'tau_const': 0.0})
    return c
