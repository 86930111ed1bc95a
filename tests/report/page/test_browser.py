"""The page in headless Chromium: mouse, keyboard, sliders, accessibility, no errors and no network requests."""

import re
import shutil
from urllib.parse import parse_qs, urlencode, urlsplit

import PIL.Image
import pytest
from page_runs import large_images, make_page, own_page, run_folders

from conftest import REPOSITORY

playwright = pytest.importorskip("playwright.sync_api", reason="needs requirements-dev.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOCAL = ("file:", "data:", "blob:")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens the page at a URL fragment; errors and network requests fail the test."""
    troubles, contexts = [], []

    def go(fragment="", path=None, **settings):
        context = browser.new_context(**({"reduced_motion": "reduce"} | settings))
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
    """Return the reader's choices from the URL fragment."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).fragment).items()}


def rings(page):
    return page.inner_html("#query svg.rings")


def test_clicks_keys_and_slider_change_the_map(visit):
    page = visit()
    seen = [rings(page)]
    box = page.locator("#query svg.rings").bounding_box()
    page.locator("#query svg.rings").click(position={"x": 0.2 * box["width"], "y": 0.2 * box["height"]})
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
    page.get_by_role("group", name="Layer", exact=True).get_by_role("radio", name="2").press("ArrowLeft")
    assert choices(page)["layer"] == "1"
    seen.append(rings(page))
    page.get_by_role("group", name="Rings").get_by_role("radio", name="3").check(force=True)
    assert choices(page)["head"] == "3"
    assert page.locator("#query svg.rings circle").count() == 1
    seen.append(rings(page))
    assert len(set(seen)) == 5
    again = visit(urlsplit(page.url).fragment)
    assert rings(again) == rings(page), "the address holds what is shown"


def test_every_run_can_be_selected(visit):
    page = visit()
    options = page.locator("#query select option")
    kinds = [options.nth(index).get_attribute("value") for index in range(options.count())]
    assert len(kinds) == 15, "all but the network without heads"
    shown = []
    for run in kinds:
        page.locator("#query select").select_option(run)
        page.wait_for_function("run => document.querySelector('#query .readout a')?.textContent === run", arg=run)
        shown.append(rings(page))
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("fragment", ["query=99999&layer=7&epoch=1.5&image=-3", "run=nobody", "%%%&query="])
def test_an_invalid_url_fragment_still_shows_the_page(visit, fragment):
    assert rings(visit(fragment))


def test_layers_may_differ_in_their_number_of_heads(visit):
    run = "pruned/sa_quadratic_pruned/mini-modern/frac1/seed0"
    page = visit(urlencode({"network": run, "run": run, "layer": 1, "head": 3}))
    assert page.locator("#query svg.rings circle").count() == 2, "of two heads; the third is in layer 2 only"
    buttons = page.locator("#network .layer button")
    assert [button.get_attribute("aria-label") for button in buttons.all()] == [
        f"layer {layer}, head {head}: on" for layer, head in ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3))
    ]
    buttons.last.click()
    assert choices(page)["heads"] == "....o"
    assert "1 of 5 heads changed" in page.inner_text("#network .readout >> nth=0")


def test_sharp_heads_match_the_convolution(visit):
    page = visit()
    alpha = page.get_by_role("slider", name="Alpha")
    said = [page.inner_text("#theorem .readout")]
    alpha.press("End")
    said.append(page.inner_text("#theorem .readout"))
    assert choices(page)["alpha"] == "104"
    assert said[1].startswith(
        "Alpha 104: attention differs from the convolution by at most 0 (away from the border: 0); outputs"
    )
    page.get_by_role("radio", name="the image alone").check(force=True)
    said.append(page.inner_text("#theorem .readout"))
    assert "heads at the border look at the nearest existing pixels" in said[2]
    assert "(away from the border: 0)" in said[2]
    assert len(set(said)) == 3


def test_dragging_a_head_moves_its_tap(visit):
    page = visit()
    tap = "svg.plane rect"
    before = page.locator(tap).nth(8).get_attribute("x")
    head = page.locator("svg.plane .head").nth(8)
    head.scroll_into_view_if_needed()
    box, plane = head.locator("text").bounding_box(), page.locator("svg.plane").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + plane["width"] / 7, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    assert float(page.locator(tap).nth(8).get_attribute("x")) == float(before) + 1
    page.keyboard.press("Shift+ArrowRight")
    assert float(page.locator(tap).nth(8).get_attribute("x")) == float(before) + 2
    assert choices(page)["centers"].startswith("-1,-1;-1,0;")
    page.get_by_role("button", name="Reset the heads").click()
    assert page.locator(tap).nth(8).get_attribute("x") == before
    assert choices(page) == {}


@pytest.mark.parametrize("of_results", [True, False])
def test_every_measure_of_a_probed_run_is_plotted(visit, of_results):
    page = visit("measure=joint", path=REPOSITORY / "docs" / "index.html" if of_results else None)
    options = page.locator("#likeness select").nth(1).locator("option")
    names = [options.nth(index).get_attribute("value") for index in range(options.count())]
    assert {"cause", "distance", "entropy", "peak"} <= set(names)
    assert of_results or {"explained", "joint"} <= set(names)
    for name in names:
        page.locator("#likeness select").nth(1).select_option(name)
        assert page.locator(f"#likeness-{name} .mark").count() >= 4
    if of_results:
        assert "uniform attention" in page.text_content("#likeness svg.chart"), "calibrated on 8 x 8 positions"


def test_a_select_keeps_the_focus(visit):
    page = visit(path=REPOSITORY / "docs" / "index.html")
    for label, field in (
        ("run", page.locator("#query select")),
        ("measure", page.locator("#likeness select").last),
    ):
        field.evaluate("element => element.dataset.old = 'yes'")
        field.focus()
        page.keyboard.press("ArrowDown")
        page.wait_for_function("!document.querySelector('select[data-old]')")
        assert page.evaluate("document.activeElement.tagName") == "SELECT", label


@pytest.mark.parametrize(
    ("centers", "moved"),
    [
        ("1,0;" * 8 + "0,-2.5", True),
        ("1,0;" * 8 + "0,-2.5;", False),
        ("1,0" * 9, False),
        ("9,0;" * 8 + "0,-2.5", False),
    ],
)
def test_only_nine_centers_within_reach_are_read_from_the_address(visit, centers, moved):
    page = visit(f"centers={centers}")
    assert page.locator("#theorem .head").count() == 9
    assert ("2.5 columns" in page.locator("#theorem .head").last.get_attribute("aria-label")) == moved


def test_the_slider_reaches_the_papers_alpha(visit):
    page = visit("alpha=46")
    slider = page.get_by_role("slider", name="Alpha")
    assert slider.get_attribute("aria-valuetext") == "46"
    slider.press("ArrowLeft")
    assert choices(page)["alpha"] == "44.3"
    slider.press("ArrowRight")
    assert choices(page)["alpha"] == "46"


def test_switching_heads_and_hiding_patches_change_the_prediction(visit):
    page = visit()
    numbers = [page.inner_html("#network table")]
    buttons = page.locator("#network .layer button")
    assert buttons.count() == 6
    buttons.first.focus()
    page.keyboard.press("Enter")
    assert buttons.first.inner_text() == "off"
    assert choices(page) == {"heads": "o....."}
    numbers.append(page.inner_html("#network table"))
    page.keyboard.press("Enter")
    assert buttons.first.inner_text() == "3x3"
    numbers.append(page.inner_html("#network table"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert choices(page) == {"heads": "t...o."}
    page.locator("#network svg.rings").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert choices(page) == {"heads": "t...o.", "hidden": "4"}
    numbers.append(page.inner_html("#network table"))
    assert "2 of 6 heads changed, 1 patch hidden" in page.inner_text("#network .readout >> nth=0")
    page.get_by_role("button", name="As trained").click()
    assert page.inner_html("#network table") == numbers[0]
    assert len(set(numbers)) == 4
    page.get_by_role("button", name="Run all images of the page").click()
    page.get_by_text("are right with these heads").wait_for()


def test_an_uploaded_image_is_classified_and_a_text_file_is_refused(visit, tmp_path):
    page = visit()
    before = page.inner_html("#network table")
    PIL.Image.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("no image")
    page.locator("#network input[type=file]").set_input_files(tmp_path / "red.png")
    page.wait_for_function("before => document.querySelector('#network table').outerHTML !== before", arg=before)
    assert "It is" not in page.inner_text("#network .readout >> nth=0")
    page.locator("#network input[type=file]").set_input_files(tmp_path / "text.png")
    page.get_by_text("text.png is not an image that this browser can read").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_accessibility_violations(visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs requirements-dev.txt")
    page = visit(color_scheme=scheme, viewport={"width": 390, "height": 800}, bypass_csp=True)
    found = axe.Axe().run(page).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("path", [None, REPOSITORY / "docs" / "index.html"])
def test_a_narrow_page_does_not_scroll_sideways(visit, path):
    page = visit(path=path, viewport={"width": 320, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_figures_can_be_saved_as_svg_and_csv(visit):
    page = visit()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save rings as SVG").click()
    assert "<ellipse" in saved.value.path().read_text()
    with page.expect_download() as saved:
        page.locator("#query").get_by_role("button", name="Save CSV").click()
    lines = saved.value.path().read_text().splitlines()
    assert lines[0].startswith("head,")
    assert len(lines) == 4


def test_a_page_of_models_without_heads_shows_only_charts(visit, tmp_path):
    assert make_page(run_folders()["resnet"], "--out", tmp_path / "resnet.html") == 0
    page = visit(path=tmp_path / "resnet.html")
    assert page.locator("#query").count() == page.locator("#network").count() == 0
    assert page.locator("#accuracy-by-epoch .mark").count() == 4


def test_runs_with_different_map_sizes_share_a_page(visit, tmp_path):
    runs = [large_images(), run_folders()["quadratic"]]
    assert make_page(*runs, "--out", tmp_path / "large.html") == 0
    page = visit("query=63", path=tmp_path / "large.html")
    assert "row 8, column 8 of 8 x 8" in page.inner_text("#query .readout")
    before = page.inner_html("#network table")
    page.locator("#network .layer button").first.click()
    page.wait_for_function("before => document.querySelector('#network table').outerHTML !== before", arg=before)
    page.locator("#query select").select_option(index=1)
    page.get_by_text("of 4 x 4").wait_for()
    assert rings(page)


def test_the_page_shows_the_claims_and_the_images_needed(visit):
    page = visit(path=REPOSITORY / "docs" / "index.html")
    rows = page.locator("#claims tbody tr")
    claims = re.findall(r"^\| \[(\w+)\]\(#", (REPOSITORY / "results/claims.md").read_text(), flags=re.MULTILINE)
    assert rows.count() == len(claims)
    assert [rows.nth(place).locator("th").inner_text() for place in (0, -1)] == [claims[0], claims[-1]]
    assert rows.first.locator("a").get_attribute("href") == "../results/claims.md#t1"
    page.locator("#images-needed .mark").first.focus()
    said = page.inner_text("#images-needed .readout")
    assert "times as many images as conv3x3 for 45% (95% interval" in said
    assert "python train.py experiment=data_size" in said
    folder = page.locator("#images-needed .readout a").get_attribute("href")
    assert (REPOSITORY / "docs" / folder).is_dir()


def test_data_points_of_the_study_show_their_command_and_run(visit):
    page = visit(path=REPOSITORY / "docs" / "index.html")
    first = page.locator("#data-size .mark").first
    first.focus()
    said = [page.inner_text("#data-size .readout")]
    assert "python train.py model=" in said[0]
    assert page.locator("#data-size .readout a").get_attribute("href").startswith("../results/runs/data_size_")
    page.keyboard.press("ArrowRight")
    said.append(page.inner_text("#data-size .readout"))
    assert said[0] != said[1]
    page.get_by_label("Trained for").select_option(index=1)
    assert "protocol" in choices(page)


def test_runs_of_equal_images_and_epochs_share_a_chart_of_time(visit):
    page = visit(path=REPOSITORY / "docs" / "index.html")
    assert {words.split(",")[1] for words in readouts(page)} == {" 50"}
    page.get_by_label("Runs of").select_option("12500 20 mini modern bf16")
    assert {words.split(",")[1] for words in readouts(page)} == {" 12"}
    assert choices(page)["budget"] == "12500 20 mini modern bf16"


def readouts(page):
    return page.locator("#minutes .mark title").all_text_contents()
