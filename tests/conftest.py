"""Shapes and types are checked while testing; threads are few, and nothing reaches the network."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}.items():
    # Read when the libraries are first imported; none of those above imports them.
    os.environ[_name] = _value

# Before anything imports the package. Integers pass where floats are asked for (the numeric tower),
# and every buffered stream is a BinaryIO (beartype knows open files only).
install_import_hook(
    "veritune",
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, "
    "hint_overrides=beartype.FrozenDict("
    "{__import__('typing').BinaryIO: __import__('io').BufferedIOBase})))",
)

settings.register_profile("veritune", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("veritune")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of the package are errors.

    The filter stands here and not in pyproject.toml, because pytest imports the class of a filter
    that it reads there before the hook above is in place.
    """
    config.addinivalue_line("filterwarnings", "error::veritune.errors.VerituneWarning")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERITUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Interrupts and hang-ups count, also where the tests run in the background or under nohup.

    Processes that the tests start inherit whether a signal is ignored.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
