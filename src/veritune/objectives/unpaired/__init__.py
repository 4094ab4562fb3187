"""Objectives on single completions that are labelled desirable or undesirable."""
