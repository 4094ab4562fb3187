"""Settings of `veritune train`: the one place where the settings of all parts meet."""

from veritune.config import Config
from veritune.evaluation.held_out import EvaluationConfig
from veritune.models.adapters import AdapterConfig
from veritune.objectives.choice import ObjectiveConfig
from veritune.records.read import DataConfig
from veritune.tokens.encode import TokensConfig
from veritune.training.loop import TrainingConfig


class TrainConfig(Config):
    """Settings of `veritune train`."""

    model: str
    """The starting model: a folder or a hub id; a folder with a PEFT adapter stands for its base
    with the adapter merged in."""

    data: DataConfig
    """File, list of files, or hub id."""

    objective: ObjectiveConfig
    """A name, {name: …, hyper-parameters}, or {combine: [...]} for a weighted sum; a name may be
    `path/to/my_loss.py:my_loss`."""

    output: str
    """The run folder. A folder with an unfinished run of the same settings is continued."""

    reference: str | None = None
    """What policy log-probabilities are compared with: a folder, hub id or adapter; null is the
    model itself before training."""

    adapter: AdapterConfig | None = None
    """Train low-rank adapters; null trains every weight. `adapter={}` takes the defaults."""

    tokens: TokensConfig = TokensConfig()
    train: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    cache: str | None = None
    """Folder of the reference cache; null is $VERITUNE_CACHE or the user's cache folder."""
