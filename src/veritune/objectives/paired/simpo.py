"""SimPO: simple preference optimization, on log-probabilities per token."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import NonNegative, Positive


def simpo_loss(
    pairs: PairedLogProbs, *, beta: Positive = 2.0, gamma: NonNegative = 1.0
) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the preferences under rewards per token, beyond a target margin.

    The reward is what generation maximizes, the mean log-probability of a completion's tokens, and
    there is no reference. The chosen reward is asked to exceed the rejected by gamma.

        loss = -log sigmoid(beta * policy(chosen) / length(chosen)
                            - beta * policy(rejected) / length(rejected) - gamma)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and lengths in tokens;
            the reference is not read.
        beta: Scale of the reward. Per token it is far larger than in DPO: released settings go
            from 2 to 10.
        gamma: Target reward margin; the released code sets gamma / beta. A larger one keeps
            pushing pairs that are already right.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Meng, Xia & Chen 2024, arXiv:2405.14734, eq. 6.
    """
    chosen = pairs.chosen.policy / pairs.chosen.length
    rejected = pairs.rejected.policy / pairs.rejected.length
    return -logsigmoid(beta * (chosen - rejected) - gamma)


CARD = Card(
    loss=simpo_loss,
    data=PairedLogProbs,
    source="arXiv:2405.14734, eq. 6",
    title="simple preference optimization",
    target=(
        "none claimed; with a positive gamma it is no estimator of a Bradley-Terry reward, and "
        "where preferences are deterministic the margin grows without end"
    ),
    elsewhere=(
        "CPOTrainer of TRL with loss_type='simpo', cpo_alpha=0, simpo_gamma=gamma; Liger- "
        "Kernel's SimPOLoss with compute_nll_loss=False"
    ),
    needs_reference=False,
)
