"""Outcomes of comparisons: pairs of two different completions, and their two sides as labels."""

import dataclasses

from veritune.objectives.optimum import FiniteProblem


def distinct_pairs(problem: FiniteProblem) -> FiniteProblem:
    """The same preferences, asked of two different completions only, as in data for training.

    The reference becomes the law of a completion in such data, so that it is the mixture of chosen
    and rejected ones: what a model is that was trained on both sides before.
    """
    assert problem.pair_law is not None, "pairs have a law"
    law = problem.pair_law.clone().fill_diagonal_(0)
    law = (law + law.T) / (2 * law.sum())
    return dataclasses.replace(problem, pair_law=law, reference=law.sum(dim=0).log())


def with_labels(problem: FiniteProblem) -> FiniteProblem:
    """The problem with the two sides of its pairs as labelled completions.

    The chosen side is desirable and the rejected one undesirable, so half of the labels are
    desirable.
    """
    assert problem.preferences is not None, "pairs have preferences"
    assert problem.pair_law is not None, "pairs have a law"
    outcomes = (problem.pair_law + problem.pair_law.T) * problem.preferences
    return dataclasses.replace(
        problem,
        desirable=outcomes.sum(dim=1).log(),
        undesirable=outcomes.sum(dim=0).log(),
        desirable_fraction=0.5,
    )
