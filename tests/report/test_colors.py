"""One color and marker per model, in every figure and on the page."""

from attnconv.report.colors import OTHER, STYLES, style_of
from conftest import REPOSITORY


def test_every_model_has_a_unique_color_and_marker():
    named = {path.stem for path in (REPOSITORY / "configs/model").glob("*.yaml")} - {"timm"}
    assert named <= STYLES.keys()
    assert len(set(STYLES.values())) == len(STYLES)
    assert style_of("somebody_elses") == OTHER
