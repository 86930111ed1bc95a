"""The page in headless Chromium: clicks, keys and sliders, no error, no request, no barrier that axe-core knows."""

import shutil
from urllib.parse import parse_qs, urlsplit

import pytest
from page_runs import own_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs requirements-dev.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOCAL = ("file:", "data:", "blob:")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """A function: fragment of the address, settings of the browser -> the open page; whatever goes wrong fails."""
    troubles, contexts = [], []

    def go(fragment="", path=None, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda request: troubles.append(request.url) if request.url[:4] in ("http", "ws:/") else None
        )
        page.goto(f"file://{path or own_page()}#{fragment}")
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert troubles == []


def choices(page):
    """The reader's choices, from the address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).fragment).items()}


def rings(page):
    return page.inner_html("svg.rings")


def test_clicks_keys_and_the_slider_change_the_map(visit):
    page = visit()
    seen = [rings(page)]
    box = page.locator("svg.rings").bounding_box()
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    assert choices(page) == {"query": "0"}
    page.keyboard.press("ArrowRight")
    assert choices(page) == {"query": "1"}
    page.keyboard.press("ArrowDown")
    assert choices(page) == {"query": "5"}
    assert "row 2, column 2 of 4 x 4" in page.inner_text("#query .readout")
    seen.append(rings(page))
    page.get_by_role("slider", name="Epoch").press("ArrowLeft")
    assert choices(page) == {"query": "5", "epoch": "1"}
    seen.append(rings(page))
    page.get_by_role("radio", name="2", exact=True).press("ArrowLeft")
    assert choices(page)["layer"] == "1"
    seen.append(rings(page))
    assert len(set(seen)) == 4
    again = visit(urlsplit(page.url).fragment)
    assert rings(again) == rings(page), "the address holds what is shown"


def test_every_run_can_be_chosen(visit):
    page = visit()
    options = page.locator("#query select option")
    kinds = [options.nth(index).get_attribute("value") for index in range(options.count())]
    assert len(kinds) == 14, "all but the network without heads"
    shown = []
    for run in kinds:
        page.locator("#query select").select_option(run)
        page.wait_for_function("run => document.querySelector('#query .readout a')?.textContent === run", arg=run)
        shown.append(rings(page))
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("fragment", ["query=99999", "layer=7", "epoch=1.5", "run=nobody", "image=-3", "%%%", "query="])
def test_an_address_that_makes_no_sense_shows_the_page(visit, fragment):
    assert rings(visit(fragment))
