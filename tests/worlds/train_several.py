"""Several runs in one process group: what `torchrun` starts for the tests of equivalence.

Usage: train_several.py FILE, where FILE holds a list of [overwrite, words as of `veritune train`].
"""

import json
import sys
from pathlib import Path

from veritune import distributed
from veritune.commands.display import Display
from veritune.commands.train import train
from veritune.commands.train_settings import TrainConfig
from veritune.config import load_config

if __name__ == "__main__":
    distributed.start()
    for overwrite, words in json.loads(Path(sys.argv[1]).read_text()):
        train(load_config(TrainConfig, None, words), Display(quiet=True), overwrite=overwrite)
    distributed.stop()
