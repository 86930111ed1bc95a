"""Measure how convolutional the attention layers of a trained network are.

    python scripts/probe.py RUN [RUN ...]
    python scripts/probe.py --calibration FILE      the same numbers for attention of known kinds

Writes RUN/probe.json. For each head it says where the head looks, how narrowly, and what its map depends on. For each
layer it says how far the heads are from a 3 x 3 convolution, and how much of the layer's output the best K x K
convolution explains, corrected for the size of the fit (attnconv.analysis.conv_similarity has the definitions). All
numbers are measured on test images, for the trained and for the initial weights, to separate learning from
architecture. Prints the numbers of the layers.
"""

import argparse

from attnconv.errors import one_line_errors
from attnconv.files import require_targets, write_whole
from attnconv.report.tables import markdown
from attnconv.runs.folder import run_name
from attnconv.settings.arguments import ScriptParser, a_path, check_target

CALIBRATED = (8, 8)  # positions: 32 x 32 images in patches of 4 x 4
# Test images to average attention over; not a setting: a try on few images must not pass for the real measurement.
IMAGES = 100


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_runs()
    parser.add_argument("--calibration", type=a_path, metavar="FILE", help="write the calibration's rows to this file")
    parser.add_data()
    parser.add_device()
    parser.add_trust()
    arguments = parser.parse_args()
    if not arguments.runs and arguments.calibration is None:
        parser.error("no run given: probe.py RUN [RUN ...]")
    if not arguments.runs:
        given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
        unused = [f"--{name}" for name in ("data", "device", "trust") if name in given]
        if unused:
            parser.error(f"{' and '.join(unused)} without RUN has no effect: leave it out")
    check_target(parser, arguments.calibration)
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Measure the runs, write their probe.json, and print the numbers of the layers."""
    from attnconv.analysis.calibration import calibration  # imports torch, as the others do
    from attnconv.analysis.probe import compact, images_to_fit, probe
    from attnconv.runs.load import find_weights, load, read_run_config
    from attnconv.runs.provenance import commit
    from attnconv.training.device import choose_device

    device = str(choose_device(arguments.device))
    head, dirty = commit()  # of the code that is loaded now
    for folder in arguments.runs:
        read_run_config(folder, arguments.trust)
        find_weights(folder)
        require_targets(folder / "probe.json")
    if arguments.calibration is not None:
        known = calibration(*CALIBRATED)
        write_whole(arguments.calibration, compact({"positions": CALIBRATED, "rows": known}).encode())
    for folder in arguments.runs:
        trained = load(folder, arguments.data, device, trusted=arguments.trust)
        # the numbers of images that probe.json records: no more than there are
        images, fitted = (min(asked, len(trained.data.test)) for asked in (IMAGES, images_to_fit(trained)))
        found = probe(trained, images, fitted)
        about = {"run": run_name(trained.config), "images": images, "fit_images": fitted}
        patch = trained.config.model.get("patch", trained.config.scale.patch)
        about |= {"patch": patch, "commit": head, "dirty": dirty}
        write_whole(folder / "probe.json", compact(about | found).encode())
        print(f"{about['run']}: {folder}/probe.json")
        columns = [name for name in found["layers"][0] if name not in ("weights", "layer")]
        rows = []
        for row in found["layers"]:
            numbers = ["" if row[name] is None else f"{row[name]:.3f}" for name in columns]
            rows.append([f"{row['layer']} {row['weights']}", *numbers])
        print(markdown(["layer", *columns], rows))


if __name__ == "__main__":
    with one_line_errors():
        main()
