"""`make images`: what it says when it cannot, what it asks of each builder, what it prints; a real push by buildah."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.rig import ground

from .checkout import ROOT
from .registry import Registry, registry
from .scripted import alone, calls, play, run_script

TEAM = "registry.example.com/team"
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


def test_without_a_registry_it_says_what_to_write() -> None:
    done = run_script("images.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "REGISTRY is not set" in done.stderr and "make images REGISTRY=" in done.stderr


@pytest.mark.parametrize(
    ("registry", "tag", "told"),
    [
        ("https://registry.example.com", "1", "write it without ://"),
        ("registry.example.com/Team", "1", "lower case"),
        ("registry.example.com/team", "a b", "TAG=a b"),
    ],
)
def test_what_is_no_registry_or_tag_is_named(registry: str, tag: str, told: str) -> None:
    done = run_script("images.py", env={"REGISTRY": registry, "TAG": tag})
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr


def test_without_any_builder_it_says_what_to_install(tmp_path: Path) -> None:
    play(tmp_path, "docker", 'echo "Cannot connect to the Docker daemon" >&2; exit 1')
    done = run_script("images.py", "--registry", TEAM, env=alone(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "docker is installed and does not answer: Cannot connect to the Docker daemon" in done.stderr
    assert "podman: not installed" in done.stderr and "apt install buildah" in done.stderr


def test_docker_builds_and_pushes_and_the_values_name_what_was_pushed(tmp_path: Path) -> None:
    # An image that lies in another registry as well has a digest there, too.
    told = f"other.example.com/rerail-operator@{OTHER}\\n{TEAM}/rerail-operator@{DIGEST}\\n{TEAM}/rerail-trainer@{DIGEST}"
    play(tmp_path, "docker", f'case "$1" in inspect) printf "{told}\\n" ;; build) echo "built" ;; esac')
    env = {
        **alone(tmp_path),
        "TAG": "7",
        "TORCH_INDEX": "https://packages.example.com/cpu",
        "PLATFORM": "linux/amd64",
    }
    done = run_script("images.py", "--registry", f"{TEAM}/", env=env)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout) == {
        "image": {"repository": f"{TEAM}/rerail-operator", "tag": "7", "digest": DIGEST}
    }
    assert f"image: {TEAM}/rerail-trainer@{DIGEST}" in done.stdout
    asked = calls(tmp_path)
    assert [call.split()[1] for call in asked] == [
        "version",
        "build",
        "build",
        "push",
        "inspect",
        "push",
        "inspect",
    ]
    for target, call in zip(("operator", "trainer"), asked[1:3], strict=True):
        assert f"--target {target} --tag {TEAM}/rerail-{target}:7" in call
        assert "--build-arg TORCH_INDEX=https://packages.example.com/cpu --platform linux/amd64" in call


def test_podman_is_next_and_a_push_that_fails_leaves_no_values(tmp_path: Path) -> None:
    play(tmp_path, "docker", "exit 1")
    play(tmp_path, "podman", 'case "$1" in push) echo "denied: not yours" >&2; exit 125 ;; esac')
    done = run_script("images.py", "--registry", TEAM, env=alone(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "denied: not yours" in done.stderr
    assert "podman push --digestfile" in done.stderr


# ---- the real thing ----------------------------------------------------------------------------------


@pytest.fixture
def here() -> Iterator[Registry]:
    with registry() as served:
        yield served


def buildah_environment(folder: Path, served: Registry) -> dict[str, str]:
    """A buildah that keeps everything below `folder` and speaks to this registry without TLS."""
    ground.install({"buildah": "buildah"})
    (folder / ".config/containers").mkdir(parents=True)
    (folder / ".config/containers/policy.json").write_text(
        '{"default": [{"type": "insecureAcceptAnything"}]}'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
    )
    (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{served.host}"\ninsecure = true\n')
    return {
        **alone(folder),
        "HOME": str(folder),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"),
        "BUILDAH_ISOLATION": "chroot",
        "TMPDIR": str(folder),
    }


def a_context(folder: Path) -> Path:
    """A Dockerfile with our two targets and nothing to download."""
    folder.mkdir()
    (folder / "operator.txt").write_text("operator")
    (folder / "trainer.txt").write_text("trainer")
    (folder / "Dockerfile").write_text(
        "FROM scratch AS operator\nCOPY operator.txt /\nFROM scratch AS trainer\nCOPY trainer.txt /\n"
    )
    return folder


@pytest.mark.realnodes
def test_buildah_builds_and_pushes_to_a_registry(tmp_path: Path, here: Registry) -> None:
    env = buildah_environment(tmp_path, here)
    (tmp_path / "buildah").symlink_to("/usr/bin/buildah")
    context = a_context(tmp_path / "context")
    done = run_script(
        "images.py", "--registry", f"{here.host}/team", "--tag", "7", "--context", str(context), env=env
    )
    assert done.returncode == 0, done.stderr
    assert sorted(here.manifests) == ["team/rerail-operator:7", "team/rerail-trainer:7"]
    values = yaml.safe_load(done.stdout)
    assert values["image"]["digest"] == here.digest("team/rerail-operator:7")
    assert f"{here.host}/team/rerail-trainer@{here.digest('team/rerail-trainer:7')}" in done.stdout
    assert (ROOT / "Dockerfile").exists()
