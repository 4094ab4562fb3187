"""Every objective there is, by name, and what users are told and asked about each."""

import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import create_model

from veritune.config import Config, build_config
from veritune.errors import SettingsError, nearest_name
from veritune.objectives import sft
from veritune.objectives.card import Card
from veritune.objectives.paired import (
    ada_dpo,
    ada_dpo_quadratic,
    bco_pair,
    chosen_nll,
    chosen_nll_mean,
    dpo,
    dpo_mean,
    exo_pref,
    exo_pref_official,
    hinge_norm,
    ipo,
    ipo_mean,
    ld_dpo,
    ld_dpo_policy,
    length_regularized_dpo,
    minor_dpo,
    mpo,
    nca,
    orpo,
    pmle,
    pmle_kl,
    rdpo,
    robust_dpo,
    rpo,
    rpo_mean,
    rso_sigmoid_norm,
    simpo,
    slic,
    slic_hf,
    sppo,
)
from veritune.objectives.parameters import (
    Parameter,
    equation,
    parameters_of,
    source,
    summary,
)
from veritune.objectives.sampled import (
    dr_grpo,
    grpo,
    online_preference_distillation,
    ppo,
    reverse_kl,
    reverse_kl_regularized,
    rloo,
)
from veritune.objectives.scored import (
    dpo_rw,
    exo_rw,
    infonca,
    nca_rw,
    optidice_chi_square,
    optidice_kl,
    optidice_soft_chi_square,
    plackett_luce,
    preference_distillation,
)
from veritune.objectives.unpaired import (
    bco,
    ddro,
    ddro_lsif,
    ddro_stabilized,
    ddro_unweighted,
    kto,
    rdro,
    rdro_kliep,
    rdro_lsif,
    rdro_pooled,
)

CATALOG: dict[str, Card] = {
    card.name: card
    for card in (
        sft.CARD,
        dpo.CARD,
        dpo_mean.CARD,
        length_regularized_dpo.CARD,
        ld_dpo.CARD,
        ld_dpo_policy.CARD,
        robust_dpo.CARD,
        ipo.CARD,
        exo_pref.CARD,
        exo_pref_official.CARD,
        pmle.CARD,
        pmle_kl.CARD,
        rso_sigmoid_norm.CARD,
        rdpo.CARD,
        ipo_mean.CARD,
        rpo.CARD,
        rpo_mean.CARD,
        minor_dpo.CARD,
        ada_dpo.CARD,
        ada_dpo_quadratic.CARD,
        nca.CARD,
        sppo.CARD,
        bco_pair.CARD,
        slic.CARD,
        slic_hf.CARD,
        hinge_norm.CARD,
        simpo.CARD,
        orpo.CARD,
        mpo.CARD,
        chosen_nll.CARD,
        chosen_nll_mean.CARD,
        exo_rw.CARD,
        dpo_rw.CARD,
        infonca.CARD,
        nca_rw.CARD,
        plackett_luce.CARD,
        preference_distillation.CARD,
        optidice_kl.CARD,
        optidice_chi_square.CARD,
        optidice_soft_chi_square.CARD,
        kto.CARD,
        bco.CARD,
        rdro.CARD,
        rdro_pooled.CARD,
        rdro_lsif.CARD,
        rdro_kliep.CARD,
        ddro.CARD,
        ddro_stabilized.CARD,
        ddro_unweighted.CARD,
        ddro_lsif.CARD,
        online_preference_distillation.CARD,
        reverse_kl.CARD,
        reverse_kl_regularized.CARD,
        rloo.CARD,
        ppo.CARD,
        grpo.CARD,
        dr_grpo.CARD,
    )
}
"""Every card by its name: demonstrations, pairs, scored groups, single labels."""

_DATA = {
    "demonstration": "demonstrations (a prompt and a completion to imitate)",
    "paired": "pairs (a chosen and a rejected completion of a prompt)",
    "scored": "scored groups (completions of a prompt with a number each)",
    "sampled": "prompts (the policy supplies completions, and each has a reward)",
    "unpaired": "single labels (a completion and whether it is desirable)",
}
_WIDTH = 96


def find_card(name: str) -> Card:
    """The card of the objective with this name.

    Raises:
        SettingsError: There is none; the message gives the nearest name.
    """
    if name in CATALOG:
        return CATALOG[name]
    if name.endswith(".py"):
        raise SettingsError(
            "a file has no name of a function with it",
            where="objective",
            got=name,
            fix=f"add the function after a colon: {name}:my_loss",
        )
    near = nearest_name(name.lower().replace("-", "_"), list(CATALOG))
    names = f"the objectives are {', '.join(CATALOG)}"
    raise SettingsError(
        "there is no objective of this name",
        where="objective",
        got=name,
        fix=f"did you mean {near}? Or: {names}" if near else names,
    )


def hyperparameters(card: Card) -> dict[str, Parameter]:
    """The hyper-parameters of an objective by name, read from its loss function."""
    return parameters_of(card.loss)


def settings_of(
    card: Card, given: Mapping[str, object], *, data_fraction: float | None
) -> dict[str, float]:
    """The hyper-parameters of a run: those given, checked, and the defaults of the rest.

    Args:
        card: The objective.
        given: What the user set, by name; without the objective's own name.
        data_fraction: Share of desirable examples in the training data, or None if unknown. It is
            the value of the card's `data_fraction` hyper-parameter where the user gives none.

    Returns:
        A value for every hyper-parameter, ready to be passed to the loss.

    Raises:
        SettingsError: A name is unknown, a value is missing or out of its range, or the data have
            only one label where the hyper-parameter is taken from them.
    """
    values = dict(given)
    name = card.data_fraction
    if name is not None and values.get(name) is None and data_fraction is not None:
        if not 0 < data_fraction < 1:
            raise SettingsError(
                f"{name} is taken from the data, and the data have only one label",
                where=f"objective {card.name}",
                got=data_fraction,
                why=f"{name} is the share of desirable examples and lies strictly between 0 and 1",
                fix=f"add examples of the other label, or choose a value: objective.{name}=0.5",
            )
        values[name] = data_fraction
    fields: dict[str, Any] = {
        parameter.name: (
            parameter.annotation,
            ... if parameter.default is None else parameter.default,
        )
        for parameter in hyperparameters(card).values()
    }
    kind = create_model("Hyperparameters", __base__=Config, **fields)
    settings = build_config(kind, values, where=f"objective {card.name}")
    return {key: float(value) for key, value in settings.model_dump().items()}


def describe(card: Card) -> str:
    """All that is known of an objective, as plain text for a terminal."""
    facts = {
        "data": _DATA[card.kind],
        "reference": "needed" if card.needs_reference else "not read",
        "step loss": f"sum over the global batch, divided by its {card.normalizer}",
        "target": card.target,
        "source": source(card.loss) or card.source,
        "elsewhere": card.elsewhere,
    }
    first_words = summary(card.loss)
    parts = [
        f"{card.name}: {card.title}",
        "" if first_words.rstrip(".") == card.title else wrapped(first_words),
        textwrap.indent(equation(card.loss), "    "),
        "\n".join(
            wrapped(f"{name + ':':<10} {what}", hanging=11) for name, what in facts.items() if what
        ),
    ]
    parameters = hyperparameters(card).values()
    if parameters:
        parts.append("\n".join(["hyper-parameters:", *(_parameter(card, p) for p in parameters)]))
    else:
        parts.append("hyper-parameters: none")
    return "\n\n".join(part for part in parts if part) + "\n"


def _parameter(card: Card, parameter: Parameter) -> str:
    if parameter.default is not None:
        default = f"default {parameter.default:g}"
    elif parameter.name == card.data_fraction:
        default = "default: the share of desirable examples in the data"
    else:
        default = "must be given"
    head = f"  {parameter.name}: {parameter.range}; {default}"
    meaning = wrapped(parameter.meaning, first=6, hanging=6)
    return f"{head}\n{meaning}".rstrip()


def wrapped(text: str, *, first: int = 0, hanging: int = 0) -> str:
    """Text for a terminal, indented by so many columns in the first line and below it."""
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * hanging,
        break_on_hyphens=False,
    )
