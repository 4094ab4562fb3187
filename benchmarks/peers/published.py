"""Every formula longhand, as its paper has it, in the numbers that it is stated in.

No function here cares for large numbers; float64 and log-ratios of a few nats are enough.
Veritune's own functions are held to these, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from peers.batches import Batch, Rows
from peers.implementation import Formula


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-value))


class _Sides:
    """Both sides of the pairs of a batch."""

    def __init__(self, batch: Batch) -> None:
        rows, half = batch.rows, batch.num_examples
        policy, reference = rows.policy_sums, rows.reference_sums
        self.tokens = rows.token_logprobs(rows.policy)[:half]
        self.chosen_policy, self.rejected_policy = policy[:half], policy[half:]
        self.chosen, self.rejected = (policy - reference)[:half], (policy - reference)[half:]
        self.margin = self.chosen - self.rejected
        lengths = rows.lengths.to(policy.dtype)
        self.chosen_length, self.rejected_length = lengths[:half], lengths[half:]
        self.mean_margin = self.chosen / self.chosen_length - self.rejected / self.rejected_length


def _of_sides(loss: Callable[[_Sides], Tensor]) -> Callable[[Batch], Tensor]:
    return lambda batch: loss(_Sides(batch)).mean()


def dpo(beta: float) -> Formula:
    return Formula(
        _of_sides(lambda s: -torch.log(sigmoid(beta * s.margin))),
        "Rafailov et al. 2023, arXiv:2305.18290, eq. 7",
    )


def hinge(gamma: float) -> Formula:
    return Formula(
        _of_sides(lambda s: torch.relu(1 - gamma * s.margin)),
        "Liu et al. 2023, arXiv:2309.06657, hinge-norm",
        takes_optimum=False,
    )


def ipo(tau: float) -> Formula:
    return Formula(
        _of_sides(lambda s: (s.margin - 1 / (2 * tau)) ** 2),
        "Azar et al. 2023, arXiv:2310.12036, eq. 17",
    )


def ipo_mean(tau: float) -> Formula:
    return Formula(
        _of_sides(lambda s: (s.mean_margin - 1 / (2 * tau)) ** 2),
        "Azar et al. 2023, arXiv:2310.12036, eq. 17, per token",
    )


def exo_pref(beta: float, epsilon: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        q = sigmoid(beta * s.margin)
        return q * torch.log(q / (1 - epsilon)) + (1 - q) * torch.log((1 - q) / epsilon)

    return Formula(_of_sides(loss), "Ji et al. 2024, arXiv:2402.00856, eq. 16")


def nca(beta: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        chosen, rejected = beta * s.chosen, beta * s.rejected
        both = torch.log(sigmoid(-chosen)) + torch.log(sigmoid(-rejected))
        return -torch.log(sigmoid(chosen)) - both / 2

    return Formula(_of_sides(loss), "Chen et al. 2024, arXiv:2402.05369, NCA for pairs")


def rdpo(beta: float, epsilon: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        right = -torch.log(sigmoid(beta * s.margin))
        flipped = -torch.log(sigmoid(-beta * s.margin))
        return ((1 - epsilon) * right - epsilon * flipped) / (1 - 2 * epsilon)

    return Formula(_of_sides(loss), "Chowdhury et al. 2024, arXiv:2403.00409, rDPO")


def bco(beta: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        delta = beta * (s.chosen.mean() + s.rejected.mean()).detach() / 2
        chosen, rejected = beta * s.chosen - delta, beta * s.rejected - delta
        return -torch.log(sigmoid(chosen)) - torch.log(sigmoid(-rejected))

    return Formula(
        _of_sides(loss),
        "Jung et al. 2024, arXiv:2404.04656, with the reward shift taken over the batch",
        couples_examples=True,
        stops_gradient=True,
        takes_optimum=False,
    )


def sppo(beta: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        return (s.chosen - 1 / (2 * beta)) ** 2 + (s.rejected + 1 / (2 * beta)) ** 2

    return Formula(_of_sides(loss), "Wu et al. 2024, arXiv:2405.00675, eq. 4.7, hard labels")


def aot_paired(beta: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        rows, half = batch.rows, batch.num_examples
        policy, reference = rows.policy_sums, rows.reference_sums
        margin = (policy[:half] - policy[half:]).sort().values
        rival = (reference[:half] - reference[half:]).sort().values
        return -torch.log(sigmoid(beta * (margin - rival))).mean()

    return Formula(
        loss,
        "Melnyk et al. 2024, arXiv:2406.05882, AOT for pairs",
        couples_examples=True,
        takes_optimum=False,
    )


def aot_unpaired(beta: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        margin = s.chosen.sort().values - s.rejected.sort().values
        return -torch.log(sigmoid(beta * margin))

    return Formula(
        _of_sides(loss),
        "Melnyk et al. 2024, arXiv:2406.05882, unpaired AOT",
        couples_examples=True,
        takes_optimum=False,
    )


def apo_zero(beta: float) -> Formula:
    return Formula(
        _of_sides(lambda s: 1 - sigmoid(beta * s.chosen) + sigmoid(beta * s.rejected)),
        "D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, plus 1",
        takes_optimum=False,
    )


def apo_down(beta: float) -> Formula:
    return Formula(
        _of_sides(lambda s: sigmoid(beta * s.chosen) + 1 - sigmoid(beta * s.margin)),
        "D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8, plus 1",
        takes_optimum=False,
    )


def discopop(beta: float, tau: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        rho = beta * s.margin
        share = sigmoid(rho / tau)
        return -(1 - share) * torch.log(sigmoid(rho)) + share * torch.exp(-rho)

    return Formula(_of_sides(loss), "Lu et al. 2024, arXiv:2406.08414, eq. 5", takes_optimum=False)


def sft() -> Formula:
    def loss(batch: Batch) -> Tensor:
        half = batch.num_examples
        return -_Sides(batch).tokens.sum() / batch.rows.lengths[:half].sum()

    return Formula(
        loss,
        "likelihood of the chosen completions, per token of the batch",
        couples_examples=True,
        ignores_reference=True,
    )


def sigmoid_norm(beta: float) -> Formula:
    return Formula(
        _of_sides(lambda s: -torch.log(sigmoid(beta * s.mean_margin))),
        "Lambert et al. 2024, arXiv:2411.15124, eq. 6",
    )


def f_dpo(beta: float, derivative: Callable[[Tensor], Tensor], name: str) -> Formula:
    """f-DPO; `derivative` is f' of the ratio of policy and reference."""

    def loss(s: _Sides) -> Tensor:
        chosen, rejected = derivative(s.chosen.exp()), derivative(s.rejected.exp())
        return -torch.log(sigmoid(beta * (chosen - rejected)))

    return Formula(_of_sides(loss), f"Wang et al. 2023, arXiv:2309.16240, {name}")


def cpo(beta: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        sides = _Sides(batch)
        margin = sides.chosen_policy - sides.rejected_policy
        return -torch.log(sigmoid(beta * margin)).mean() + sft().mean_loss(batch)

    return Formula(
        loss,
        "Xu et al. 2024, arXiv:2401.08417, eqs. 3 to 5, the likelihood per token of the batch",
        couples_examples=True,
        ignores_reference=True,
    )


def simpo(beta: float, gamma: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        chosen = s.chosen_policy / s.chosen_length
        rejected = s.rejected_policy / s.rejected_length
        return -torch.log(sigmoid(beta * (chosen - rejected) - gamma))

    return Formula(
        _of_sides(loss), "Meng et al. 2024, arXiv:2405.14734, eq. 6", ignores_reference=True
    )


def orpo(weight: float) -> Formula:
    def loss(s: _Sides) -> Tensor:
        chosen = (s.chosen_policy / s.chosen_length).exp()
        rejected = (s.rejected_policy / s.rejected_length).exp()
        odds = torch.log(chosen / (1 - chosen)) - torch.log(rejected / (1 - rejected))
        return -torch.log(chosen) - weight * torch.log(sigmoid(odds))

    return Formula(
        _of_sides(loss), "Hong et al. 2024, arXiv:2403.07691, eqs. 6 and 7", ignores_reference=True
    )


def _log_ratios(rows: Rows) -> Tensor:
    return rows.policy_sums - rows.reference_sums


def kto(beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Formula:
    def loss(batch: Batch) -> Tensor:
        assert batch.desirable is not None, "KTO has labels"
        assert batch.mismatched is not None, "KTO has mismatched completions"
        z0 = _log_ratios(batch.mismatched).mean().detach().clamp(min=0)
        ratio = _log_ratios(batch.rows)
        good = desirable_weight * (1 - sigmoid(beta * (ratio - z0)))
        bad = undesirable_weight * (1 - sigmoid(beta * (z0 - ratio)))
        return torch.where(batch.desirable, good, bad).mean()

    return Formula(
        loss,
        "Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7",
        couples_examples=True,
        takes_optimum=False,
    )


def apo_zero_unpaired(beta: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        assert batch.desirable is not None, "unpaired APO has labels"
        share = sigmoid(beta * _log_ratios(batch.rows))
        return torch.where(batch.desirable, 1 - share, share).mean()

    return Formula(
        loss,
        "D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7 plus 1, one side at a time",
        takes_optimum=False,
    )
