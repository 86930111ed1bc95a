"""How convolutional are a trained network's attention layers? `python scripts/probe.py RUN [RUN ...]`

Writes RUN/probe.json: for every head where it looks, how narrowly, and what moves its map; for every layer how far its
heads span a convolution, and how much of its output the best K x K convolution explains on images that it was not
fitted to (attnconv.theory.likeness says how each is measured). All on test images, for the trained weights and for
those that the run began with, so that learning is told from architecture. Prints the layers.
"""

import argparse
import sys
from pathlib import Path

from attnconv.errors import UserError
from attnconv.files import write_whole
from attnconv.study.tables import markdown
from attnconv.study.theorem import compact, probe
from attnconv.tracking.provenance import commit
from attnconv.tracking.run_folder import run_name
from attnconv.trained import load_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders of finished runs")
    parser.add_argument("--data", help="folder of the data, if not where the run found it")
    parser.add_argument("--images", type=int, default=100, help="test images over which attention is averaged")
    parser.add_argument(
        "--fit-images", type=int, default=600, help="test images to fit and judge convolutions, half each"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for folder in arguments.runs:
        try:
            trained = load_trained(folder, arguments.data, arguments.device)
            found = probe(trained, arguments.images, arguments.fit_images)
        except UserError as error:
            sys.exit(f"error: {error}")
        head, dirty = commit()
        about = {"run": run_name(trained.config), "images": arguments.images, "fit_images": arguments.fit_images}
        about |= {"patch": trained.config.scale.patch, "commit": head, "dirty": dirty}
        write_whole(folder / "probe.json", compact(about | found).encode())
        print(f"{about['run']}: {folder}/probe.json")
        columns = [name for name in found["layers"][0] if name not in ("weights", "layer")]
        rows = []
        for row in found["layers"]:
            numbers = ["" if row[name] is None else f"{row[name]:.3f}" for name in columns]
            rows.append([f"{row['layer']} {row['weights']}", *numbers])
        print(markdown(["layer", *columns], rows))


if __name__ == "__main__":
    main()
