"""Checkpoint to measurements: how good is the policy on what it was not trained on?

In come a policy and held-out data; out come numbers with the count behind them. Nothing here
changes a weight.
"""
