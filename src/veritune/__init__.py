"""Veritune aligns language models with preference data.

The route of the data, one line per part, in order; a part imports only parts listed before it:

    errors          every error raised on purpose, and the form of a message
    ranges          named number ranges
    findings        what pydantic finds wrong with settings, in words
    config          YAML file and dotted overrides to frozen settings
    seeds           one run seed to independent named streams
    provenance      what produced a file: settings, versions, content hashes
    bibliography    the papers that the code cites, as BibTeX, found by what a source says
    distributed     the only module that talks to other ranks
    records         file to records
    tokens          records to tokens
    batches         tokens to batches
    logprobs        the forms in which log-probabilities reach an objective
    rejection       of many candidates, a few that follow the tilted law
    models          batches to log-probabilities
    objectives      log-probabilities to the loss of each example
    laboratory      objectives to theorems checked
    bridge          what is proved of tables is true of models
    training        loss to gradient step to checkpoint
    evaluation      checkpoint to measurements
    reports         measurements to pages
    commands        words on the command line to the route
"""

import os

# Nothing is reported to anyone, by the libraries below neither. They read this when imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
