from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.parameters import equation, parameters_of, source, summary
from veritune.objectives.unpaired.rdro import rdro_loss
from veritune.objectives.unpaired.rdro_pooled import rdro_pooled_loss
from veritune.ranges import HalfFraction, Positive


def test_a_parameter_is_read_from_signature_and_docstring():
    def example_loss(data: object, *, tau: Positive = 2, epsilon: HalfFraction) -> None:
        """Value.

            loss = tau

        Args:
            data: Anything.
            tau: First line
                and second: line.
            epsilon: Noise.
        """

    tau, epsilon = parameters_of(example_loss).values()

    assert (tau.name, tau.default, tau.is_required) == ("tau", 2.0, False)
    assert tau.range == "greater than 0"
    assert tau.meaning == "First line and second: line."
    assert epsilon.is_required
    assert epsilon.range == "at least 0 and less than 0.5"


def test_the_equation_is_the_first_indented_block_of_the_docstring():
    assert equation(dpo_loss) == (
        "loss = -log sigmoid(beta * (log_ratio(chosen) - log_ratio(rejected)))"
    )
    assert equation(rdro_loss).count("\n") == 1


def test_summary_and_source_are_single_lines():
    assert summary(dpo_loss) == (
        "Negative log-likelihood of the preferences under implicit rewards."
    )
    assert source(dpo_loss) == "Rafailov et al. 2023, arXiv:2305.18290, eq. 7."
    assert source(rdro_pooled_loss).endswith("the released code.")
