"""Evaluation: replay of held-out episodes, errors, intervals, contrasts (paper 5-6; docs/design.md,
"Evaluation protocol").

runner, request, sections     from training folders to the report's files, and what was asked for
predictor, trained_models     what is asked of a trained Sigma; finished trainings opened for that
replay, replay_shards         whole episodes through a model, outputs as flat windows
measure, checks               methods x splits: errors, the simple methods, the paper's own tables
simple_baselines              what needs no Sigma: holding still, the mean action, a fitted bias
metrics, provenance           errors per window, rates, means; where the numbers come from
adapter_sweep                 the adapter over its scales, chosen on calibration
compare/                      trainings against each other: found, replayed, contrasted, intervals
stress/                       the adapter when Sigma goes wrong; noise, black images, a late state
cost/                         parameters and arithmetic of each method
report/                       the page, tables, figures, schema of the report
"""
