"""Many trainings as one: rows x seeds of gates that are data (docs/design.md, "Ablations").

stacked                       pure: members, their stacked states, one step for all of them
setup                         base, data and compiled step of such a run
stacked_trainer               the loop, and a training folder for each member at the end
summary                       last losses, row by row
"""
