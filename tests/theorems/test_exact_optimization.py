import pytest

from veritune.laboratory.theorem import run_check
from veritune.laboratory.theorems.exact_optimization import THEOREMS


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
def test_the_claim_holds_and_its_control_is_rejected(theorem):
    result = run_check(theorem)

    assert result.verdict == "holds", result.evidence
