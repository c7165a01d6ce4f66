"""Generated files are what their generators write today."""

import subprocess
import sys

import pytest
import yaml

from .checkout import CHART, ROOT

ENVIRONMENT = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer'}", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize("module", ["rerail_api.crd", "rerail_api.reference"])
def test_the_generator_finds_its_files_current(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--check"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_brings_the_same_crd_byte_for_byte() -> None:
    names = sorted(path.name for path in (ROOT / "crds").iterdir())
    assert names == sorted(path.name for path in (CHART / "crds").iterdir())
    for name in names:
        assert (ROOT / "crds" / name).read_bytes() == (CHART / "crds" / name).read_bytes(), name


def test_chart_and_distribution_have_one_version() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["version"]}"' in pyproject
    assert str(chart["appVersion"]) == str(chart["version"])
