"""Objectives come in, claims about them go out, checked without sampling.

Finite problems are small enough that every sum is exact; the very loss functions that train are
minimized in float64, and each minimum carries the evidence that it is one. Nothing here knows of
models or data files.
"""
