"""Objectives on completions that the policy itself supplies, with a reward each."""
