"""One color per model, in every figure and on the page."""

import re

from attnconv.report.colors import LOOKS, OTHER, look
from conftest import REPOSITORY


def test_every_model_of_the_study_has_a_look_of_its_own():
    named = {path.stem for path in (REPOSITORY / "configs/model").glob("*.yaml")} - {"timm"}
    assert named <= LOOKS.keys()
    assert len(set(LOOKS.values())) == len(LOOKS)
    assert look("somebody_elses") == OTHER


def test_the_page_has_the_same_colors():
    script = (REPOSITORY / "src/attnconv/report/page/colors.js").read_text()
    of_page = dict(re.findall(r"^  (\w+): \"(#[0-9a-f]{6})\",$", script, flags=re.MULTILINE))
    assert len(of_page) >= 5
    assert of_page == {model: look(model).color for model in of_page}
