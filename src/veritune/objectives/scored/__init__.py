"""Objectives on groups of completions of one prompt, each with a score."""
