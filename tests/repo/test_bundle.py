"""`make bundle`: whole, the same twice, loadable where there is no internet; damage is found before anything is pushed."""

import hashlib
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.rig import archive, binaries

from .checkout import CHART, ROOT
from .registry import Registry, registry
from .scripted import alone, calls, play, run_script
from .test_images import DIGEST, TEAM, buildah_environment

RELEASE = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
NAME = f"rerail-{RELEASE}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose images hold one small file each."""
    return make(tmp_path, tmp_path / "out")


def make(folder: Path, out: Path) -> Path:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for target in ("operator", "trainer"):
        archive.write(
            images / f"{target}.tar", f"rerail-{target}:dev", {f"/{target}": ROOT / "LICENSE"}, ["/none"]
        )
    done = run_script("bundle.py", "--images", str(images), "--out", str(out))
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path == out / f"{NAME}.tar"
    assert list(out.iterdir()) == [path], "nothing else is left behind"
    return path


def unpack(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    return folder / NAME


def test_a_bundle_holds_all_that_a_site_needs(bundle: Path, tmp_path: Path) -> None:
    top = unpack(bundle, tmp_path / "site")
    inside = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    assert {
        "images/rerail-operator.tar",
        "images/rerail-trainer.tar",
        f"{NAME}.tgz",
        "crds/trainingjobs.yaml",
        "examples/01-recover/job.yaml",
        "load.sh",
        "LICENSE",
        "SHA256SUMS",
    } <= inside
    sums = dict(reversed(line.split("  ")) for line in (top / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == inside - {"SHA256SUMS"}
    for name, told in sums.items():
        assert hashlib.sha256((top / name).read_bytes()).hexdigest() == told


def test_the_same_files_give_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    assert make(tmp_path, tmp_path / "again").read_bytes() == bundle.read_bytes()


def test_an_image_that_is_missing_is_named_and_no_bundle_is_left(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    done = run_script("bundle.py", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "operator.tar is not there" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    done = run_script("bundle.py", "--images", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"bundle: {tmp_path / 'out'}: File exists\n"


def load(top: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(top / "load.sh"), *words], env=env, capture_output=True, text=True, timeout=120
    )


def test_docker_loads_tags_and_pushes_what_the_bundle_holds(bundle: Path, tmp_path: Path) -> None:
    top, tools = unpack(bundle, tmp_path / "site"), tmp_path / "bin"
    play(
        tools,
        "docker",
        f"""case "$1 $3" in
          load*operator*) echo "Loaded image: rerail-operator:dev" ;;
          load*trainer*) echo "Loaded image ID: {DIGEST}" ;;
          inspect*) printf "{TEAM}/rerail-operator@{DIGEST}\\n{TEAM}/rerail-trainer@{DIGEST}\\n" ;;
        esac""",
    )
    done = load(top, f"{TEAM}/", env=alone(tools))
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load(done.stdout)["image"]
    assert values == {"repository": f"{TEAM}/rerail-operator", "tag": RELEASE, "digest": DIGEST}
    assert f"docker tag rerail-operator:dev {TEAM}/rerail-operator:{RELEASE}" in calls(tools)
    assert f"docker tag {DIGEST} {TEAM}/rerail-trainer:{RELEASE}" in calls(tools)


def test_damage_is_found_before_anything_is_pushed(bundle: Path, tmp_path: Path) -> None:
    top, tools = unpack(bundle, tmp_path / "site"), tmp_path / "bin"
    play(tools, "docker")
    file = top / "images" / "rerail-trainer.tar"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    done = load(top, TEAM, env=alone(tools))
    assert (done.returncode, done.stdout) == (1, "")
    assert "rerail-trainer.tar" in done.stderr and "damaged" in done.stderr
    assert not (tools / "calls").exists()


def test_without_a_registry_or_a_program_it_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    top = unpack(bundle, tmp_path / "site")
    env = alone(tmp_path)
    assert "./load.sh registry.example.com/team" in load(top, env=env).stderr
    done = load(top, TEAM, env=env)
    assert done.returncode == 1 and "none of docker, podman, skopeo, buildah" in done.stderr


@pytest.mark.controlplane
def test_helm_takes_the_packed_chart_with_the_values_that_are_printed(bundle: Path, tmp_path: Path) -> None:
    top = unpack(bundle, tmp_path / "site")
    helm = binaries.ensure(["helm"])["helm"]
    values = tmp_path / "values.yaml"
    values.write_text(f"image: {{repository: {TEAM}/rerail-operator, tag: '1', digest: '{DIGEST}'}}\n")
    words = [helm, "template", "rerail", top / f"{NAME}.tgz", "--values", values, "--include-crds"]
    done = subprocess.run(words, capture_output=True, text=True, env={"HOME": str(tmp_path)}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"image: {TEAM}/rerail-operator@{DIGEST}" in done.stdout
    assert "name: trainingjobs.rerail.dev" in done.stdout


@pytest.fixture
def here() -> Iterator[Registry]:
    with registry() as served:
        yield served


@pytest.mark.realnodes
def test_buildah_brings_a_bundle_into_a_registry(bundle: Path, tmp_path: Path, here: Registry) -> None:
    top = unpack(bundle, tmp_path / "site")
    home = tmp_path / "home"
    home.mkdir()
    env = buildah_environment(home, here)
    (home / "buildah").symlink_to("/usr/bin/buildah")
    done = load(top, f"{here.host}/team", env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(here.manifests) == [f"team/rerail-{name}:{RELEASE}" for name in ("operator", "trainer")]
    assert yaml.safe_load(done.stdout)["image"]["digest"] == here.digest(f"team/rerail-operator:{RELEASE}")
