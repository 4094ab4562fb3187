"""Measurements to pages.

In come the files of a run folder, or the exact results of the demo; out goes one self-contained
HTML file, or a table for the terminal. Nothing here measures anything, loads a model or talks to
other ranks, and everything that comes from data is escaped.
"""
