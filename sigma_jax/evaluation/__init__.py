"""Evaluation: replay of held-out episodes, errors, intervals, contrasts (paper 5-6; DESIGN 3.8).

runner                        evaluate.py's work: from training folders to the report's files
trained, trainings            finished trainings opened for evaluation; which of them are rows and seeds
replay, replay_shards         whole episodes through a model, outputs as flat windows
measure, arms, checks         arms x splits: errors, the simple arms, the paper's own tables
comparison, comparison_run    rows of several seeds against each other, paired by episode
kept                          what each training gave, until the report is written
intervals                     bootstrap over episodes, and over seeds x episodes
stress, adapter_sweep         the adapter when Sigma goes wrong, and over its scales
robustness, perturb           noise on cameras, black pictures, a late state
compute, flops, provenance    parameters and cost of each arm; where the numbers come from
"""
