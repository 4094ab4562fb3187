import torch

from veritune.logprobs import CompletionLogProbs, DemonstrationLogProbs
from veritune.objectives.sft import CARD, sft_loss


def test_sft_loss_is_the_negative_log_probability_of_all_tokens():
    completion = CompletionLogProbs(torch.tensor([-3.5, -12.0]), torch.tensor([7, 3]))

    loss = sft_loss(DemonstrationLogProbs(completion))

    assert loss.tolist() == [3.5, 12.0]


def test_sft_is_averaged_over_tokens():
    assert CARD.normalizer == "tokens"
