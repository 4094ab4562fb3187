"""The checks that Veritune's objectives pass, run on the implementations of other toolkits.

    table_policy.py     a policy that is a table, with the output of a language model
    batches.py          rows of completions under a policy and a reference, as tables
    implementation.py   what a check needs to know about an implementation
    hyperparameters.py  those at which everything is compared
    published.py, published_samples.py
                        every formula longhand, as its paper has it
    trl_pairs.py, trl_labels.py, trl_samples.py, liger_losses.py, veritune_losses.py
                        the implementations
    checks.py           value, gradient and laws
    optimum.py          whether a loss comes to rest where its formula does
    accumulation.py     real trainers on a tiny model, in one piece and in four
    settings.py         settings that a trainer takes, and what they change
    explanations.py     what is known about each check that does not hold
    document.py         results to docs/peers.md

Nothing here is imported by Veritune, and a check is the same code for every implementation.
"""
