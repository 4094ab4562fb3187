"""Log-probabilities come in, the loss of each example goes out.

One published objective is one file with its loss (a pure function), its optimum if one is claimed,
its loss before the first update, and its card. `catalog.py` lists every card. Nothing here knows
of models, ranks, settings files or randomness, and nothing averages: that is done once, over the
global batch, in the training step.
"""
