"""The list of reasons is closed: every word has a sentence, a page, and a place in the code that says it."""

import re
from pathlib import Path

import pytest

from rerail_operator.core.admission import CLUSTER_SETTLING, WAITING_FOR_OLDER_JOB, WAITING_FOR_SPARES
from rerail_operator.core.reasons import SENTENCES, Reason
from rerail_operator.core.survey import INSUFFICIENT_NODES, NEVER_FITS
from rerail_operator.shell.reasons_page import FILE, main, page

CHECKOUT = Path(__file__).parents[2]
CORE = CHECKOUT / "operator" / "rerail_operator" / "core"
OF_THE_PLANNER = {INSUFFICIENT_NODES, NEVER_FITS, WAITING_FOR_OLDER_JOB, WAITING_FOR_SPARES, CLUSTER_SETTLING}


def test_every_reason_has_one_sentence_in_the_order_of_the_list() -> None:
    assert tuple(SENTENCES) == tuple(Reason)
    assert [
        reason for reason, sentence in SENTENCES.items() if not re.fullmatch(r"[A-Z].+\.", sentence)
    ] == []


def test_every_reason_is_said_somewhere() -> None:
    code = "".join(path.read_text() for path in CORE.glob("*.py") if path.name != "reasons.py")
    said = {reason for reason in Reason if f"Reason.{reason.name}" in code}
    assert set(Reason) - said <= {Reason(word) for word in OF_THE_PLANNER}


def test_the_page_is_current() -> None:
    assert (CHECKOUT / FILE).read_text() == page()


def test_check_tells_a_stale_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["--check", "--root", str(tmp_path)]
    assert main(check) == 1
    assert FILE in capsys.readouterr().err
    assert main(["--write", "--root", str(tmp_path)]) == 0
    assert main(check) == 0
