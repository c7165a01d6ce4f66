"""One zygote for all tests here; one yard, with its own checkpoint folder, for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .chats import tokenizer_in
from .gang import Yard, Zygote

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.trainer)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture
def yard(zygote: Zygote, tmp_path: Path) -> Iterator[Yard]:
    tmp_path.chmod(0o777)
    yard = Yard(zygote, tmp_path)
    yield yard
    yard.close()


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The same for 60 steps without a single save; the learning rate has come down after 8."""
    yard = Yard(zygote, tmp_path_factory.mktemp("undisturbed"))
    words = ("--train.steps=60", "--optim.horizon_steps=8", "--checkpoint.dir=")
    return yard.run(*words, ranks=2).losses()


@pytest.fixture(scope="session")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of 8 steps on two ranks that nothing disturbed."""
    yard = Yard(zygote, tmp_path_factory.mktemp("uninterrupted"))
    return yard.run(ranks=2).losses()


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    return tokenizer_in(tmp_path)
