"""The picture of `rerail ledger --plot`; here, because matplotlib comes with the trainer's tests."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from rerail_operator.shell.cli import main
from rerail_operator.shell.ledger.account import Account
from rerail_operator.shell.ledger.picture import COLOURS, draw
from tests.shell.test_ledger import REPORT


def test_the_three_panels_show_when_which_and_how_much() -> None:
    figure = draw(Account.model_validate(REPORT))
    line, glass, sums = figure.axes
    assert "2 h, 3 interruptions, ETTR 0.986, 0.991 predicted" in figure.get_suptitle()
    assert [bar.get_width() for bar in glass.patches] == [10.0, 4.0, 6.0, 10.0]
    assert [text.get_text().strip() for text in glass.texts] == ["30.0 s, 4 steps, 133.3 GPU-h"]
    assert sum(bar.get_width() for bar in sums.patches) == 200.0
    assert "3.33 min, 2.8% of the wall clock" in sums.get_title(loc="left")
    began, ended = line.get_xlim()
    assert (ended - began) * 86_400 == pytest.approx(7200, abs=0.01)


def test_every_stage_has_a_colour_of_its_own() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_a_job_without_interruptions_is_drawn_as_well() -> None:
    lived = Account.model_validate({**REPORT, "incidents": []})
    assert "none" in [text.get_text() for text in draw(lived).axes[1].texts]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_file_is_written_in_the_format_of_its_name(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, picture = tmp_path / "report.json", tmp_path / f"ledger{suffix}"
    report.write_text(json.dumps(REPORT), encoding="utf-8")
    assert main(["ledger", "--report", str(report), "--plot", str(picture)]) == 0
    assert "ETTR 0.986" in capsys.readouterr().out
    if suffix == ".png":
        assert imread(picture).std() > 0.1
    else:
        assert b"<svg" in picture.read_bytes()[:1000]


def test_a_report_that_does_not_say_when_is_not_drawn_and_the_reason_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({**REPORT, "created": None}), encoding="utf-8")
    assert main(["ledger", "--report", str(report), "--plot", str(tmp_path / "x.png")]) == 2
    assert "does not say when" in capsys.readouterr().err
