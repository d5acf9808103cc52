"""Training: from a config to checkpoints, on the devices that are there.

build, run                    objective, frozen leaves and optimiser of a config; the compiled step
step, optimizer               one optimiser step, pure; AdamW per group of leaves
loop, trainer                 continues, logs, saves, stops on a signal, NaN, a full disk; one run
progress                      lines and bars of long work, for whoever listens
checkpoints, logs             whole checkpoints or none; train_log.csv and TensorBoard
signals, finite               the stop signal; which term of which window is NaN
feature_cache                 what the frozen policy makes of images and texts, once, on disk
devices, compilation          a mesh over local devices; compiled programs kept on disk
memory, memory_check, fusion  what a step will need, and whether it fits a card (train.py --check)
export                        adapter, heads and merged weights of a run, for others
"""
