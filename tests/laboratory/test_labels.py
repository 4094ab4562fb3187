import math

import pytest
import torch

from veritune.laboratory.labels import class_laws, joint_problem, pushes
from veritune.laboratory.problems import mixture, mixture_problem
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.rdro import rdro_loss


def test_the_push_of_rdro_is_its_derivative_longhand():
    log_ratio = torch.tensor([0.0, 1.0], dtype=torch.float64)
    sigmoid = 1 / (1 + math.exp(-1))

    up = pushes(rdro_loss, log_ratio, is_desirable=True, alpha=0.39)
    down = pushes(rdro_loss, log_ratio, is_desirable=False, alpha=0.39)

    assert up.tolist() == pytest.approx([1.39 / 2 - 1, 1.39 * sigmoid - 1])
    assert down.tolist() == pytest.approx([0.61 / 2, 0.61 * sigmoid])


def test_the_push_of_ddro_on_a_desirable_completion_is_that_of_likelihood():
    log_ratio = torch.tensor([-3.0, 0.0, 5.0], dtype=torch.float64)

    assert pushes(ddro_loss, log_ratio, is_desirable=True, t=0.3).tolist() == pytest.approx(
        [-0.3, -0.3, -0.3]
    )


def test_the_reference_of_joined_mixtures_is_the_mixture_of_their_joint_laws():
    prompts = [mixture_problem(3, seed, desirable_fraction=0.2 + 0.5 * seed) for seed in (0, 1)]

    joint = joint_problem(prompts)

    laws = class_laws(joint)
    assert laws.fraction == pytest.approx((0.2 + 0.7) / 2)
    for law in (joint.reference, laws.desirable, laws.undesirable):
        assert law.exp().sum().item() == pytest.approx(1)
    mixed = mixture(laws.desirable, laws.undesirable, laws.fraction)
    assert torch.allclose(mixed, joint.reference)


def test_a_prompt_with_many_desirable_completions_has_a_large_share_of_their_law():
    prompts = [mixture_problem(3, seed, desirable_fraction=0.2 + 0.5 * seed) for seed in (0, 1)]

    laws = class_laws(joint_problem(prompts))

    assert laws.desirable[:3].exp().sum().item() == pytest.approx(0.2 / (0.2 + 0.7))
    assert laws.undesirable[:3].exp().sum().item() == pytest.approx(0.8 / (0.8 + 0.3))
