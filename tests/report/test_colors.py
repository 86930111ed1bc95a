"""One color and marker per model, in every figure and on the page."""

from attnconv.report.colors import LOOKS, OTHER, look
from conftest import REPOSITORY


def test_every_model_has_a_unique_color_and_marker():
    named = {path.stem for path in (REPOSITORY / "configs/model").glob("*.yaml")} - {"timm"}
    assert named <= LOOKS.keys()
    assert len(set(LOOKS.values())) == len(LOOKS)
    assert look("somebody_elses") == OTHER
