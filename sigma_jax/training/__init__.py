"""Training: from a config to checkpoints, on the devices that are there.

run                           base, shards, objective and optimiser of a config, put together; the compiled step
trainer                       the loop: continues, logs, saves, stops on a signal, a NaN, a full disk
checkpoints, logs             whole checkpoints or none; train_log.csv and TensorBoard
signals, finite               a wish to stop; which term of which window is no number
features                      what the frozen policy makes of pictures and texts, once, on disk
devices, compilation          a mesh over local devices; compiled programs kept on disk
memory, memory_check          what a step will need, and whether it fits a card (train.py --check)
"""
