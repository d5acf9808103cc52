"""What the scripts do, as functions: settings in, a frozen result out. `sigma_jax` exports them.

conversion                    checkpoints from layout to layout, and the proof that they are equal
preparation                   a data set opened, cut into shards, looked into
training                      a run, an ablation, their memory, what a run gives to others
evaluation                    trainings against their base and each other
serving                       a policy served over a network
serving_forecast              what that will take of a card
"""
