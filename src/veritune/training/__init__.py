"""Loss to gradient step to checkpoint: one loop for every objective.

In come a model, tokenized data and an objective; out come an aligned model, a line of metrics per
step and checkpoints from which a run continues to the same weights. Losses are averaged in one
place (`objective_pass.py`), over the global batch.
"""
