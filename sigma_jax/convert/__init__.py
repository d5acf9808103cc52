"""Checkpoints of a backbone in and out; its spec (`backbones.base`) has names, forms and sizes.

source, checkpoint, writers   open, load, convert: any layout to any layout, slice by slice
load_base                     the base of a run: sizes, weights, statistics, does the robot fit it
slices, sizes                 a model in slices of tensors; its sizes in files beside weights
validate, joints              what does not fit the model, or the robot
tensor_files, small_file      safetensors files; small ones, read whole
orbax_leaves, orbax_tree      Orbax arrays; which of them are the weights
wrappers, other_models        names in a training's wrappers; models that are no pi0.5
leaf_digests                  SHA-256 per leaf
assets, overrides             statistics, processors and settings beside weights; what a caller says
stats_source, dataset_stats   statistics named elsewhere; exact ones from a data set's rows
merge, heads                  LoRA merged into weights; Sigma's heads
lerobot/                      LeRobot's config.json and processors, read and written
openpi/                       openpi's assets, its own LoRA leaves, settings of its training config
peft/                         LoRA factors as PEFT adapters
parity/                       proof against the numbers of a public implementation
"""
