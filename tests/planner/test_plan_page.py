"""`dtrain plan --html`: one file, everything in it, nothing from elsewhere; looked at by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dtrain.cli.main import cli
from dtrain.config.load import loads
from dtrain.errors import BadInput
from dtrain.hardware.profiles import resolve_profile
from dtrain.planner.nearest import ways_out
from dtrain.planner.plan import make_plan
from dtrain.planner.rent import Limits, rent
from dtrain.show.plan_page import plan_page
from tests.planner.layouts import facts

TINY = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
TEXT = "base_model: {}\ndatasets: [{{path: no/data, type: alpaca}}]\nmax_steps: 100\n"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE_PIXELS = 360


def page(model: str = TINY, profile: str = "a100x8") -> str:
    loaded = loads(TEXT.format(model))
    plan = make_plan(loaded, resolve_profile(profile), facts(model))
    ways = [] if plan.accepted else ways_out(plan, loaded, facts(model))
    return plan_page(plan, ways, rent(loaded, facts(model), Limits()))


class Tags(HTMLParser):
    """Open tags, which must be closed in order, and every place a page could load something from."""

    VOID = frozenset({"meta", "link", "br", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("profile", ["a100x8", "4090x1", "cpu", "h100x8x4"])
def test_the_page_is_whole_and_loads_nothing(profile: str) -> None:
    text = page(profile=profile)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.loads == ["data:,"]
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    for heading in ("phase by phase", "Where the time goes", "Where it could run", "Why this way"):
        assert heading in text


def test_what_is_on_it() -> None:
    text = unescape(page())
    for words in ("optimizer step", "activations", "collectives", "gradient_checkpointing: full", "samples/s"):
        assert words in text
    assert text.count('class="front"') >= 3  # the peak's terms and at least two machines of the front


def test_a_plan_that_does_not_fit_shows_the_ways_out() -> None:
    text = page("meta-llama/Llama-3.1-8B", "t4x1")
    assert "does not fit" in text
    assert "What would fit" in text
    assert 'class="over"' in text


def test_words_of_the_config_are_text_and_not_html() -> None:
    loaded = loads(TEXT.format(TINY))
    plan = make_plan(loaded, resolve_profile("a100x8"), replace(facts(TINY), name="<script>alert(1)</script>"))
    text = plan_page(plan, [], "no <b>machine</b>")
    assert "<script" not in text
    assert "no &lt;b&gt;machine" in text


def test_the_command_writes_it_beside_the_json(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "plan.html"
    arguments = ["plan", "configs/storyteller.yaml", "--profile", "a100x8", "--json", "--html", str(target)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["neighbours"]
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    arguments = ["plan", "configs/storyteller.yaml", "--profile", "a100x8", "--html", str(tmp_path)]
    assert isinstance(CliRunner().invoke(cli, arguments).exception, BadInput)


PROBE = """<!doctype html><body><iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe><script>
onload = () => {{ const told = document.querySelector("iframe").contentWindow, root = told.document.documentElement;
  const bar = told.document.querySelector(".bar").getBoundingClientRect();
  document.body.innerText = JSON.stringify({{ wide: root.scrollWidth,
    sections: told.document.querySelectorAll("section").length,
    loaded: told.performance.getEntriesByType("resource").length, bar: bar.width,
    ground: told.getComputedStyle(told.document.body).backgroundColor }}) }};
</script></body>"""


def looked_at(tmp_path: Path, width: int, *flags: str) -> dict[str, Any]:
    """The page in a frame of that width, in a browser: what it measures."""
    if BROWSER is None:
        pytest.skip("NO BROWSER: install Debian's chromium to test the plan's page in one")
    file = tmp_path / "probe.html"
    file.write_text(PROBE.format(width=width, page=escape(page(), quote=True)), encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    done = subprocess.run(
        [BROWSER, *quiet, *flags, "--virtual-time-budget=3000", "--dump-dom", f"file://{file}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"\{.*\}", unescape(done.stdout))
    assert found is not None, done.stdout[-500:]
    told: dict[str, Any] = json.loads(found[0])
    return told


def test_on_a_phone_nothing_sticks_out(tmp_path: Path) -> None:
    told = looked_at(tmp_path, PHONE_PIXELS)
    assert told["wide"] <= PHONE_PIXELS
    assert told["bar"] > PHONE_PIXELS / 2
    assert told["sections"] >= 5
    assert told["loaded"] == 0


def test_dark_where_the_reader_likes_it_dark(tmp_path: Path) -> None:
    assert looked_at(tmp_path, 1100)["ground"] == "rgb(246, 247, 249)"
    assert looked_at(tmp_path, 1100, "--force-dark-mode")["ground"] == "rgb(17, 21, 27)"
