"""Runs LeRobot's `PI05Pytorch` or openpi's `PI0Pytorch` (one structure) and listens to what its
modules compute.
"""

import argparse
import importlib.metadata
import pathlib
import re

import numpy as np
from fixture_library import Failure, load, openpi_config, say, tiny_gemma

HEAD, TABLE = 'paligemma.lm_head.weight', 'paligemma.model.language_model.embed_tokens.weight'
UNUSED = 'gemma_expert.lm_head.weight'  # in every PyTorch checkpoint, read by nobody


def listen(owner, name: str, calls: list):
    """Lets the method `owner.name` report (keyword arguments, result) of every call; returns what
    ends that.
    """
    method = getattr(owner, name)

    def reporting(*args, **kwargs):
        result = method(*args, **kwargs)
        calls.append((kwargs, result))
        return result

    setattr(owner, name, reporting)
    return lambda: delattr(owner, name)


def resized(original, change):
    """The class `original`, called with a transformers config that `change` has altered."""

    def build(config):
        change(config)
        return original(config)

    return build


def shrink_torch(module, names: tuple[str, str], settings: dict) -> None:
    """Puts the sizes of --tiny-config where the library has constants: into the configs it hands to
    transformers.
    """
    siglip, text = settings['tiny']['siglip'], settings['vocab_size']

    def paligemma(config):
        vision = config.vision_config
        vision.hidden_size, vision.num_hidden_layers = siglip['width'], siglip['depth']
        vision.intermediate_size, vision.num_attention_heads = (
            siglip['mlp_dim'],
            siglip['num_heads'],
        )
        vision.patch_size, vision.image_size = settings['patch_size'], settings['image_size']
        vision.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = text

    def expert(config):
        config.vocab_size = text

    for name, change in zip(names, (paligemma, expert), strict=True):
        setattr(module, name, resized(getattr(module, name), change))


def build_lerobot(flags: argparse.Namespace, settings: dict):
    """LeRobot's `PI05Pytorch` without weights."""
    torch = load('torch', 'PyTorch')
    module = load('lerobot.policies.pi05.modeling_pi05', 'LeRobot >= 0.5 with its extra `pi`')
    configuration = load(
        'lerobot.policies.pi05.configuration_pi05', 'LeRobot >= 0.5 with its extra `pi`'
    )
    if 'tiny' in settings:
        module.get_gemma_config = tiny_gemma(module, settings, 'GemmaConfig')
        names = ('PaliGemmaForConditionalGenerationWithPiGemma', 'PiGemmaForCausalLM')
        if missing := [name for name in names if not hasattr(module, name)]:
            raise Failure(
                f'expected {missing} in this LeRobot for --tiny-config; use LeRobot >= 0.5.1'
            )
        shrink_torch(module, names, settings)
    config = configuration.PI05Config(
        dtype=flags.dtype,
        device=flags.device,
        chunk_size=settings['action_horizon'],
        n_action_steps=settings['action_horizon'],
        max_action_dim=settings['action_dim'],
        num_inference_steps=settings['num_steps'],
        tokenizer_max_length=settings['text_length'],
        image_resolution=(settings['image_size'],) * 2,
    )
    with torch.device(flags.device):
        return module.PI05Pytorch(config)


def build_openpi_pytorch(flags: argparse.Namespace, settings: dict):
    """openpi's `PI0Pytorch(pi05=True)` without weights."""
    torch = load('torch', 'PyTorch')
    what = 'openpi with its patched transformers'
    module = load('openpi.models_pytorch.gemma_pytorch', what)
    if 'tiny' in settings:
        gemma = load('openpi.models.gemma', what)
        gemma.get_config = tiny_gemma(gemma, settings, 'Config')
        shrink_torch(module, ('PaliGemmaForConditionalGeneration', 'GemmaForCausalLM'), settings)
    policy = load('openpi.models_pytorch.pi0_pytorch', what)
    with torch.device(flags.device):
        return policy.PI0Pytorch(openpi_config(flags, settings))


def safetensors_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The weight files of a checkpoint path."""
    files = [path] if path.is_file() else sorted(path.glob('*.safetensors'))
    files = [
        file for file in files if file.suffix == '.safetensors' and 'processor' not in file.name
    ]
    if not files:
        raise Failure(
            f'expected model.safetensors at {path}, got none; give the file or the '
            'folder that holds it'
        )
    return files


def plain(name: str) -> str:
    """A tensor's name without the prefixes that differ between versions."""
    name = re.sub(r'^model\.(?=paligemma_with_expert|action_|time_mlp)', '', name)
    return name.replace('vision_tower.vision_model.', 'vision_tower.')


def fill(model, path: pathlib.Path) -> None:
    """Copies the checkpoint's tensors into the model, one at a time. Fails where names or shapes
    differ.
    """
    torch, safetensors = load('torch', 'PyTorch'), load('safetensors', 'safetensors')
    stored: dict = {}
    for file in safetensors_files(path):
        reader = safetensors.safe_open(file, framework='pt')
        stored |= {plain(name): (reader, name) for name in reader.keys()}  # noqa: SIM118
    wanted = {plain(name): tensor for name, tensor in model.state_dict().items()}
    table, head = (
        next((name for name in wanted if name.endswith(end)), end) for end in (TABLE, HEAD)
    )
    # one tensor under two names; where they differ, the table is read
    one = stored.get(table) or stored.get(head)
    if one:
        stored |= {table: one, head: one}
    wanted = {name: tensor for name, tensor in wanted.items() if not name.endswith(UNUSED)}
    extra = [
        name for name in stored if name not in wanted and not name.endswith((UNUSED, TABLE, HEAD))
    ]
    problems = [f'missing {name}' for name in wanted if name not in stored] + [
        f'unexpected {name}' for name in extra
    ]
    for name in wanted.keys() & stored.keys():
        reader, key = stored[name]
        shape = tuple(reader.get_slice(key).get_shape())
        if shape != tuple(wanted[name].shape):
            problems.append(f'{name}: expected {tuple(wanted[name].shape)}, got {shape}')
    if problems:
        raise Failure(
            f'{path} does not fit the model ({len(problems)} differences): '
            f'{"; ".join(problems[:8])}'
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            reader, key = stored[name]
            tensor.copy_(reader.get_tensor(key))


def run_torch(
    flags: argparse.Namespace, settings: dict, inputs: dict, cameras: list[str]
) -> dict[str, np.ndarray]:
    """All quantities from LeRobot's or openpi's PyTorch model, float32 where they are no masks or
    positions.

    Everything runs twice: rarely, a multi-threaded CPU run gives a wrong number that nothing else
    shows.
    """
    torch = load('torch', 'PyTorch')
    say(f'building the model on {flags.device}')
    build = build_lerobot if flags.library == 'lerobot' else build_openpi_pytorch
    model = build(flags, settings).to(flags.device).eval()
    full_precision(torch, flags.dtype)
    say(f'reading {flags.checkpoint}')
    fill(model, pathlib.Path(flags.checkpoint))
    settings['sizes'] = torch_sizes(model)
    given = {name: torch.from_numpy(x).to(flags.device) for name, x in inputs.items()}
    try:
        first, again = (
            record(torch, flags.library, model, given, cameras, settings['num_steps'])
            for _ in range(2)
        )
    except (AttributeError, TypeError) as error:
        raise Failure(
            f'{flags.library} does not run with {versions()}: {error}; install those it asks for'
        ) from error
    for name, x in first.items():
        change, scale = np.abs(x - again[name].astype(float)).max(), np.abs(x).max()
        if change > (1e-5 if flags.dtype == 'float32' else 1e-2) * scale:
            raise Failure(
                f'expected the same {name} from two runs, got a difference of '
                f'{change:.2g}; run it again'
            )
    if flags.device.startswith('cuda'):
        say(f'peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB')
    return first


def versions() -> str:
    """The packages that a PyTorch implementation depends on, for messages."""
    return ', '.join(
        f'{name} {importlib.metadata.version(name)}' for name in ('torch', 'transformers')
    )


def record(
    torch, library: str, model, given: dict, cameras: list[str], steps: int
) -> dict[str, np.ndarray]:
    """Both passes once, and what the modules were given and returned on the way."""
    joined: list = []
    embedded: list = []
    velocities: list = []
    silence = [
        listen(model.paligemma_with_expert, 'forward', joined),
        listen(model, 'embed_prefix', embedded),
    ]
    silence += [
        model.action_out_proj.register_forward_hook(
            lambda module, x, y: velocities.append(y)
        ).remove
    ]
    loss, sampled = passes(torch, library, model, given, cameras, steps)
    for stop in silence:
        stop()
    (training, ((_, hidden), _)), (prefill, ((prefix_hidden, _), _)) = joined[:2]
    prefix, suffix = training['inputs_embeds']
    outputs = {
        'prefix_embeddings': prefix,
        'prefix_mask': embedded[0][1][1],
        'prefix_positions': prefill['position_ids'].int(),
        'prefix_hidden': prefix_hidden,
        'time_cond': training['adarms_cond'][1],
        'suffix_embeddings': suffix,
        'suffix_positions': training['position_ids'][:, prefix.shape[1] :].int(),
        'suffix_hidden': hidden,
        'velocity': velocities[0],
        'loss': loss,
        'sampled_actions': sampled,
    }
    outputs = {name: x.detach().cpu() for name, x in outputs.items()}
    return {
        name: (x.float() if x.is_floating_point() else x).numpy() for name, x in outputs.items()
    }


def full_precision(torch, dtype: str) -> None:
    """No TF32, and in float32 the plain attention kernels; some libraries switch TF32 on when a
    model is built.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision('highest')
    if dtype == 'float32' and torch.cuda.is_available():
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)


def passes(torch, library: str, model, given: dict, cameras: list[str], steps: int):
    """(loss of the training pass, sampled actions), through the library's own `forward` and
    `sample_actions`.
    """
    images = [given[name].permute(0, 3, 1, 2).contiguous() for name in cameras]
    masks = [given[f'{name}_mask'] for name in cameras]
    prompt = (given['tokens'].long(), given['token_mask'])
    flow, noise = (given['actions'], given['noise'], given['time']), given['sample_noise'].clone()
    sample = type(model).sample_actions  # of the class: an instance may hold a compiled one
    with torch.no_grad():
        if library == 'lerobot':
            loss = model.forward(images, masks, *prompt, *flow)
            return loss, sample(model, images, masks, *prompt, noise=noise, num_steps=steps)
        state = torch.zeros(len(noise), given['actions'].shape[-1], device=noise.device)
        model._preprocess_observation = lambda observation, *, train=True: (
            images,
            masks,
            *prompt,
            state,
        )
        observation = argparse.Namespace(state=state)
        loss = model.forward(observation, *flow)
        return loss, sample(model, noise.device, observation, noise=noise, num_steps=steps)


def torch_sizes(model) -> dict:
    """Sizes as built, in the words of a fixture's config.json."""
    c, expert = (
        model.paligemma_with_expert.paligemma.config,
        model.paligemma_with_expert.gemma_expert.config,
    )
    names = {'width': 'hidden_size', 'depth': 'num_hidden_layers', 'mlp_dim': 'intermediate_size'}
    names |= {'num_heads': 'num_attention_heads'}
    heads = {'num_kv_heads': 'num_key_value_heads', 'head_dim': 'head_dim'}

    def read(config, names):
        return {ours: getattr(config, theirs) for ours, theirs in names.items()}

    return {
        'siglip': read(c.vision_config, names),
        'vlm': read(c.text_config, names | heads),
        'action_expert': read(expert, names | heads),
    }
