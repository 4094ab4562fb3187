"""Tokens to batches: groups laid end to end in rows, each with its plan.

In come tokenized groups; out come rows of ids with everything a forward pass needs beside them. A
prompt stands once, whatever the number of its completions. Nothing here knows a model.
"""
