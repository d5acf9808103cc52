"""pi0.5 checkpoints in and out.

source, checkpoint, writers   open, load, convert: any layout to any layout, slice by slice
pytorch, pieces, sizes, fit   the table of names, its slices, sizes from arrays, what does not fit
tensors, leaves, orbax_tree   safetensors files, Orbax arrays, which of them are the weights
torch_names, other_models     names in a training's wrappers; models that are no pi0.5
digests, whole_file           SHA-256 per leaf; small files
beside, lerobot_*, openpi_*   statistics, processors and settings beside the weights
stats_source, adapter_beside  statistics named elsewhere; those beside an adapter
peft*, merge, heads           LoRA factors as PEFT adapters, merged weights, Sigma's heads
openpi_lora                   openpi's own LoRA factors, merged
fixture, verify               proof against the numbers of a public implementation
"""
