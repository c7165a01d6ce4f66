"""One zygote for all tests here; one yard, with its own checkpoint folder, for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .chats import tokenizer_in
from .gang import Yard, Zygote
from .leaks import leaving_nothing_changed

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.trainer)


@pytest.fixture(scope="session", autouse=True)
def kernels_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Torch's compiler, when it first looks for its folder, names one of the machine in the environment unless
    one is named there: it would be some test that leaves that to the next.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_to_the_next_test() -> Iterator[None]:
    """Tests here share one process; torch's own generator begins at the same place in each."""
    torch.manual_seed(0)
    with leaving_nothing_changed():
        yield


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


def without_a_save(zygote: Zygote, folder: Path, ranks: int) -> dict[int, float]:
    """Losses of 60 steps that nothing disturbed; the learning rate has come down after 8."""
    words = ("--train.steps=60", "--optim.horizon_steps=8", "--checkpoint.dir=")
    return Yard(zygote, folder).run(*words, ranks=ranks).losses()


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """On two ranks."""
    return without_a_save(zygote, tmp_path_factory.mktemp("undisturbed"), ranks=2)


@pytest.fixture(scope="session")
def undisturbed_by_four(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """On four ranks."""
    return without_a_save(zygote, tmp_path_factory.mktemp("undisturbed-by-four"), ranks=4)


@pytest.fixture(scope="session")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of 8 steps on two ranks that nothing disturbed."""
    yard = Yard(zygote, tmp_path_factory.mktemp("uninterrupted"))
    return yard.run(ranks=2).losses()


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    return tokenizer_in(tmp_path)
