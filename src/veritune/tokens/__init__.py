"""Records to tokens: the only place where text meets special tokens.

In come sound records and a tokenizer; out come token ids, with a mask that says which tokens bear
loss. Training, sampling and evaluation all render here, so they agree by construction. This part
never pads, never batches and never drops anything without counting it.
"""
