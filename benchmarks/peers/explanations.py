"""What is known about each check that does not hold: who says what, and how it comes about.

An explanation names the checks that it is about. It is printed only while one of them fails, so
that nothing is said of a release that it is not true of; a failure without an explanation is
printed as such.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

VERDICTS = {
    "documented": "the toolkit's documentation or source says that it is so",
    "by design": "it follows from what the objective is, or from a decision of the maintainers",
    "default": "a default setting makes it another objective; another setting makes it hold",
    "overflow": "the formula is finite or large, and floating point leaves its range",
    "departs": "it is not what the paper has, or what one would expect, and we found no statement",
}
"""The kinds of explanation."""


@dataclass(frozen=True)
class Explanation:
    """Why some checks do not hold."""

    title: str
    verdict: str
    about: tuple[tuple[str, str], ...]
    """Pattern of a name, and a check; for settings and steps the check is `case` or `step`."""

    text: str

    def covers(self, name: str, check: str) -> bool:
        """Whether it is about this check of this loss."""
        return any(fnmatchcase(name, pattern) and check == of for pattern, of in self.about)


def explanation_of(name: str, check: str) -> Explanation | None:
    """The explanation of a failed check, if there is one."""
    return next((one for one in EXPLANATIONS if one.covers(name, check)), None)


_PER_MICRO_BATCH = """A mean over the tokens of a micro-batch gives every micro-batch the same
weight, however many tokens it has. With completions of different lengths the step then depends on
how the batch is cut, and eight examples at a time are another objective than two at a time four
times over. TRL's own `SFTTrainer` divides by the tokens of the whole step and does not
depend on it, and neither do the preference terms alone, which are means over examples.
Larger differences in length make it larger."""

EXPLANATIONS: tuple[Explanation, ...] = (
    Explanation(
        "IPO per token",
        "documented",
        (("TRL DPOTrainer ipo", "value"),),
        """Equation 17 of the paper has log-ratios of whole completions; TRL divides each by its
length. Its source says that the authors of IPO confirmed this and that the paper's
results were obtained so (trl#1265, trl#1677). With completions of one token, as in
the check of the optimum, both are one. Veritune has either, as `ipo` and `ipo_mean`.""",
    ),
    Explanation(
        "BCO without its reward shift",
        "departs",
        (("* bco_pair", "value"),),
        """The paper counts rewards from a shift, the mean reward of chosen and rejected
completions so far. In both toolkits the shift is zero. TRL had it from the first
version of the loss (trl#1524) up to release 0.28, and has had none since the trainer
was rewritten in 0.29; we found no discussion of it, and the documentation speaks of
the classifier only. The two agree where the mean reward is zero, as it is when
training begins.""",
    ),
    Explanation(
        "The coefficient of the alpha-divergence runs the other way",
        "departs",
        (
            ("TRL DPOTrainer sigmoid alpha_divergence 0.3", "value"),
            ("TRL DPOTrainer sigmoid alpha_divergence 0.3", "optimum"),
        ),
        """The paper's derivative is (1 - u^-alpha) / alpha, which is the reverse KL at alpha =
0 and the forward KL at 1, and TRL's documentation writes u^-alpha, too. TRL computes
(u^(c - 1) - 1) / (c - 1), which is the paper's with alpha = 1 - c: the reverse KL at
c = 1. Up to release 0.28 TRL's was the paper's; it has run the other way since 0.29.
At the default of 0.5 both are the same. The line with 0.7 in the table is the
paper's 0.3, and holds.""",
    ),
    Explanation(
        "The alpha-divergence refuses float64",
        "by design",
        (("TRL DPOTrainer sigmoid alpha_divergence *", "precision"),),
        """Exponents are clamped at a value that is looked up by type, and float64 is not in the
list. TRL trains in bfloat16, float16 or float32, so it is of no consequence there.
The other checks of these lines were made in float32.""",
    ),
    Explanation(
        "Token means of a micro-batch",
        "by design",
        (
            ("TRL DPOTrainer sft", "cutting"),
            ("TRL CPOTrainer sigmoid", "cutting"),
            ("TRL CPOTrainer simpo", "cutting"),
            ("TRL ORPOTrainer", "cutting"),
            ("Liger CPOLoss", "cutting"),
            ("Liger SimPOLoss", "cutting"),
            ("Liger ORPOLoss", "cutting"),
            ("DPOTrainer sft", "step"),
            ("DPOTrainer sigmoid + sft", "step"),
            ("CPOTrainer sigmoid", "step"),
            ("ORPOTrainer", "step"),
        ),
        _PER_MICRO_BATCH,
    ),
    Explanation(
        "GRPO per token of the local batch",
        "documented",
        (("* bnpo", "cutting"),),
        """TRL's documentation of `bnpo` says that the tokens are those of the local batch only
and that results vary with its size. `dapo`, the default, counts the tokens of the
whole step, and holds.""",
    ),
    Explanation(
        "Losses that look at the whole micro-batch",
        "documented",
        (("TRL DPOTrainer aot", "cutting"), ("TRL DPOTrainer aot_unpaired", "cutting")),
        """AOT sorts the margins of the batch and compares them rank by rank; the ranks are
those of the micro-batch. TRL's documentation says that larger batches per device
help.""",
    ),
    Explanation(
        "KTO's reference point is that of the micro-batch",
        "documented",
        (
            ("TRL KTOTrainer kto", "cutting"),
            ("TRL KTOTrainer kto weighted", "cutting"),
            ("KTOTrainer kto", "step"),
        ),
        """z0 is the mean log-ratio of mismatched completions, cut off at zero, and TRL takes it
over the micro-batch, averaged over processes but not over accumulated micro-batches;
its documentation says that mismatched completions are those of the batch. The cut
makes the mean of such points larger than the point of the mean. The paper estimates
it from the examples of a batch. Veritune takes it over the global batch; Liger
leaves it to the caller, and was given that of the whole step here.""",
    ),
    Explanation(
        "ORPO's likelihood is a mean over tokens of the batch",
        "by design",
        (("* ORPO*", "value"),),
        """Equation 6 of the paper is a mean over examples of a loss whose likelihood is a mean
over the tokens of the example. Both toolkits take the likelihood as a mean over all
tokens of the batch, as the cross-entropy of most libraries does, so that a long
completion counts more. The preference term is the paper's.""",
    ),
    Explanation(
        "SimPO with a likelihood term",
        "default",
        (
            ("TRL CPOTrainer simpo", "value"),
            ("TRL CPOTrainer simpo", "optimum"),
            ("Liger SimPOLoss", "value"),
            ("Liger SimPOLoss", "optimum"),
        ),
        """SimPO is the preference term alone. TRL adds `cpo_alpha`, by default 1, times the
likelihood, which makes it CPO-SimPO, and documents that SimPO takes `cpo_alpha=0`
(trl#1760). Liger's class adds it by default, too; `compute_nll_loss=False` leaves it
out. With these settings both hold in all checks: see the table.""",
    ),
    Explanation(
        "GRPO's KL term is corrected for the behavior",
        "documented",
        (("TRL GRPOTrainer grpo with KL", "value"),),
        """The paper adds the estimate of the KL as it is. TRL multiplies it by the importance
ratio, as DeepSeek-V3.2 does, so that its gradient is that of the reverse KL; the
documentation says so. With `use_bias_correction_kl=False` it is the paper's, and
holds.""",
    ),
    Explanation(
        "DiscoPOP's exponential overflows",
        "overflow",
        (("* discopop", "extremes"),),
        """The loss blends a logistic and an exponential term, and the exponential one fades out
where it is large: the exact product tends to zero. In float32 exp overflows at 88.7,
and infinity times zero is not a number. It takes beta times the margin below -88.7:
177 nats at the beta of 0.5 used here, 887 nats at the default of 0.1.""",
    ),
    Explanation(
        "The forward KL's exponential overflows",
        "overflow",
        (("TRL DPOTrainer sigmoid forward_kl", "extremes"),),
        """The score of a completion is 1 - 1/u, where u is policy over reference. In float32 it
overflows once a completion is 89 nats less likely than under the reference, whatever
beta is: half a nat per token for 180 tokens. Where it is the rejected completion,
the exact loss and gradient there are zero. The formula of the paper itself has no
bound. The alpha-divergence is clamped against this, and holds.""",
    ),
    Explanation(
        "Importance ratios overflow",
        "overflow",
        (
            ("* GRPO* grpo*", "extremes"),
            ("* GRPO* dr_grpo", "extremes"),
            ("* GRPO* dapo", "extremes"),
            ("* GRPO* bnpo", "extremes"),
            ("* GRPO* sapo", "extremes"),
            ("* GRPO* luspo", "extremes"),
            ("TRL RLOOTrainer", "extremes"),
        ),
        """exp(policy - behavior) is infinite in float32 from 88.7 nats on. With a positive
advantage the clip keeps the loss finite, but its gradient becomes infinity times
zero; with a negative one nothing is clipped, and the loss is infinite. For a single
token it is out of reach: none with a probability of e^-88 is ever sampled. For sums
over a completion, as in RLOO, it takes a policy that has left its samples far
behind. With a KL term the estimate exp(reference - policy) overflows in the same
way, and there the formula itself is that large. Veritune continues the ratio by its
tangent from 10 nats on.""",
    ),
    Explanation(
        "Label smoothing is not part of the sigmoid loss",
        "documented",
        (("label_smoothing_changes_the_sigmoid_loss", "case"),),
        """The documentation of `label_smoothing` names robust DPO and EXO only. Up to TRL 0.28
it made the sigmoid loss conservative DPO (trl#1035); since the trainer was rewritten
in 0.29 it is accepted and has no effect there.""",
    ),
    Explanation(
        "beta = 0 trains nothing",
        "documented",
        (("zero_beta_is_refused", "case"),),
        """The DPO loss is log 2 for every policy then, and its gradient is zero. TRL's
documentation gives beta > 0; zero is accepted all the same, and users have met it
(trl#1627).""",
    ),
    Explanation(
        "KTO on pairs sees one class at a time",
        "departs",
        (("kto_on_paired_data_mixes_classes", "case"),),
        """It comes of two documented things together. A data set of pairs is taken apart in
pieces of 1,000 rows, each first all chosen and then all rejected completions; and
the order of the data is kept, because the mismatched completions of z0 are made of
neighbors beforehand (`train_sampling_strategy` must be sequential). So a thousand
examples of one class follow a thousand of the other. Taking the pairs apart by hand
(`unpair_preference_dataset`) and shuffling the result before it is given to the
trainer avoids it. The documentation notes that KTO has been run with one class
alone; the moments at which the classes change are not mentioned.""",
    ),
    Explanation(
        "ORPO's likelihood includes the prompt",
        "by design",
        (("orpo_takes_the_likelihood_of_the_completion", "case"),),
        """The maintainers chose it to follow the authors' code, with which it gave better
results (trl#1516; taken back and restored in trl#2527). The paper's likelihood is of
the completion given the prompt. The odds ratio is of completions.""",
    ),
    Explanation(
        "CISPO with the default epsilon_high",
        "default",
        (("cispo_leaves_on_policy_gradients_alone", "case"),),
        """For CISPO `epsilon_high` is the largest ratio itself, not its distance from 1, and
the documentation recommends 5. Left alone it is `epsilon`, 0.2, so that every ratio
is cut to at most 0.2: on fresh samples all gradients are a fifth. With
`epsilon_high=5` it holds, as the table shows.""",
    ),
)
"""Every explanation, in the order in which they are printed."""
