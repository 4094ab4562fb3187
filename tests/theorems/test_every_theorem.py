import pytest

from veritune.bridge import EVERY_THEOREM
from veritune.laboratory.theorem import run_check


@pytest.mark.parametrize("theorem", EVERY_THEOREM, ids=lambda theorem: theorem.name)
def test_the_claim_holds_and_its_control_is_rejected(theorem):
    result = run_check(theorem)

    assert result.verdict == "holds", result.evidence
