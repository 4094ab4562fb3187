"""Batches to log-probabilities, by unmodified Hugging Face models.

In come batches; out come float32 log-probabilities of their targets. This is the door to the model
library: nothing after it sees logits, masks or attention.
"""
