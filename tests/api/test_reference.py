"""The reference page is current and names every field and every rule."""

from pathlib import Path

import pytest
import yaml

from rerail_api.reference import FILE, main, reference
from rerail_api.rules import RULES, TRANSITIONS
from rerail_api.v1alpha1 import parse_job
from tests.api.examples import CHECKOUT

FIELDS = Path(__file__).parent / "fields.txt"


def test_the_page_is_current() -> None:
    assert (CHECKOUT / FILE).read_text() == reference()


def test_check_tells_a_stale_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["--check", "--root", str(tmp_path)]
    assert main(check) == 1
    assert FILE in capsys.readouterr().err
    assert main(["--write", "--root", str(tmp_path)]) == 0
    assert main(check) == 0


def test_every_field_has_a_row() -> None:
    names = {
        line.split()[0].rsplit(".", 1)[-1].removesuffix("[]") for line in FIELDS.read_text().splitlines()
    }
    assert [
        name for name in sorted(names - {"*", "spec", "status"}) if f"| `{name}` |" not in reference()
    ] == []


def test_every_rule_has_a_row() -> None:
    assert [rule.name for rule in (*RULES, *TRANSITIONS) if rule.message not in reference()] == []


def test_its_smallest_job_is_good() -> None:
    manifest = yaml.safe_load(reference().split("```yaml\n")[1].split("```")[0])
    assert parse_job(manifest).spec.num_nodes == 1
