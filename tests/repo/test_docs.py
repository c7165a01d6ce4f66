"""The documents say what the code does: links lead somewhere, tables are the code's, quotations are literal."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerail_api.contract import KIND, ExitCode
from rerail_api.v1alpha1 import parse_job
from rerail_operator.core.taxonomy import BY_CODE, Action
from rerail_operator.shell.metrics import Gauge, Metrics
from rerail_operator.shell.vitals import gauges

from .checkout import ROOT, files, shown
from .rights import granted

DOCS = ROOT / "docs"
PAGES = files(".md")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def slug(title: str) -> str:
    """A heading's anchor, as the usual renderers make it."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = FENCED.sub("", page.read_text())
    return {slug(re.sub(r"[`*]", "", title)) for title in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page: Path) -> None:
    dead = []
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert dead == []


def test_every_page_can_be_reached_from_the_front_page() -> None:
    seen, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        for target in LINK.findall(FENCED.sub("", page.read_text())):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.suffix == ".md" and there.exists() and there not in seen:
                ahead.append(there)
    assert {shown(page) for page in PAGES if DOCS in page.parents} - {shown(page) for page in seen} == set()


def test_every_make_target_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (shown(page), word)
        for page in PAGES
        for word in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M)
    }
    assert {(page, word) for page, word in named if word not in targets} == set()


def rows(page: Path) -> list[list[str]]:
    """Cells of all table rows of a page, heads and rules left out."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in page.read_text().splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells if not set("".join(row)) <= set("-: ")]


def test_the_table_of_exit_codes_is_the_codes() -> None:
    table = [row for row in rows(DOCS / "reference/exit-codes.md") if row[0].isdigit() and len(row) == 5]
    assert {(int(row[0]), row[1].strip("`")) for row in table} == {
        (code.value, code.name) for code in ExitCode
    }
    ends = {int(row[0]) for row in table if "job fails" in row[3]}
    assert ends == {
        code.value for code in ExitCode if code in BY_CODE and BY_CODE[code].action is Action.FAIL
    }


class Parts:
    """Only its shape matters: the gauges are listed, not read."""

    engine = leadership = coordinator = recorder = problems = None


def test_the_page_of_metrics_lists_all_of_the_operator() -> None:
    listed: tuple[Gauge, ...] = gauges(Parts())  # type: ignore[arg-type]
    silent = tuple(Gauge(one.name, one.help, lambda: 0.0, one.counter) for one in listed)
    metrics = Metrics(lambda _: True, silent)
    own = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith("rerail_")
    }
    told = set(re.findall(r"`(rerail_(?!trainer)\w+)`", (DOCS / "reference/metrics.md").read_text()))
    assert told == own


def test_the_page_of_metrics_lists_all_of_the_trainer() -> None:
    source = (ROOT / "trainer/rerail_trainer/report/metrics.py").read_text()
    own = set(re.findall(r'^    "(\w+)": \("(?:gauge|counter|histogram)"', source, re.M))
    told = set(re.findall(r"`rerail_trainer_(\w+)`", (DOCS / "reference/metrics.md").read_text()))
    assert told == own


def test_the_page_about_security_gives_a_reason_for_every_right_and_for_no_other() -> None:
    told = {
        (target, verb)
        for row in rows(DOCS / "security.md")
        if len(row) == 3 and row[2] and row[0].startswith("`") and not row[0].startswith("`rerail-")
        for target in re.findall(r"`([^`]+)`", row[0])
        for verb in row[1].split(", ")
    }
    cluster, namespace = granted()
    assert told == {(target, verb) for _, target, verb in cluster | namespace}


@cache
def sources() -> str:
    """All code and templates, with texts that are written over several lines put together."""
    suffixes = {".py", ".tpl", ".sh", ".yaml"}
    places = ("operator/", "trainer/", "scripts/", "helm/")
    found = [p for p in files() if p.suffix in suffixes and shown(p).startswith(places)]
    text = "\n".join(_plain(path) for path in found)
    return re.sub(r'"\s*\n\s*f?"', "", text).replace("`", "")


def _plain(path: Path) -> str:
    """Without what is filled in; in a chart's templates braces are around the sentences themselves."""
    text = path.read_text()
    return re.sub(r"\{[^{}\n]*\}", "", text) if path.suffix == ".py" else text


def quotations() -> list[str]:
    page = FENCED.sub("", (DOCS / "troubleshooting.md").read_text())
    first = [row[0] for row in rows(DOCS / "troubleshooting.md")]
    assert page
    return [span for cell in first for span in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("span", quotations())
def test_what_the_page_about_trouble_quotes_is_what_the_code_says(span: str) -> None:
    parts = [part.strip() for part in span.split("…")]
    missing = [part for part in parts if len(part) > 3 and part not in sources()]
    assert missing == []


def test_every_example_that_is_named_is_there() -> None:
    for page in PAGES:
        for named in re.findall(r"examples/[\w./-]+\.yaml", page.read_text()):
            assert (ROOT / named).exists(), f"{shown(page)}: {named}"


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """Every YAML block of the pages, with the page's name."""
    blocks = [(page, re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)) for page in PAGES]
    return [(shown(page), yaml.safe_load(block)) for page, found in blocks for block in found]


@pytest.mark.parametrize(("page", "manifest"), manifests())
def test_every_job_that_a_page_shows_is_a_good_one(page: str, manifest: dict[str, Any]) -> None:
    assert isinstance(manifest, dict), page
    if manifest["kind"] == KIND:
        parse_job(manifest)
