"""What every model costs and sees, known before training: writes results/models.csv and results/models.md.

    python scripts/model_table.py              ten minutes on two CPU cores, most of them for the measured exponents
    python scripts/model_table.py --only sa_quadratic conv3x3 --into /tmp

Columns: parameters; FLOPs per image, forward, as the paper counts them and in full; bytes of activations that one image
of a training batch keeps; the exponent of time in the number of pixels, in theory and measured on this machine;
receptive field after 1 to 6 layers in pixels, in theory and in effect; what a layer makes of shifted and of shuffled
maps (0: the same, 1: something else); whether its kernels depend on the content. `attnconv.analysis.profile` says how.
"""

import csv
from pathlib import Path

import torch

from attnconv.analysis.profile import cost_row, growth, sight_row, study_models
from attnconv.errors import one_line_errors
from attnconv.files import read_csv
from attnconv.report.tables import models_table
from attnconv.runs.provenance import describe_device
from attnconv.settings.arguments import ScriptParser, existing_folder

REPOSITORY = Path(__file__).resolve().parents[1]
SCALES = ("paper", "mini")


def main() -> None:
    parser = ScriptParser(__doc__)
    models = study_models()
    parser.add_argument("--only", nargs="+", choices=models, default=models, metavar="MODEL", help=", ".join(models))
    parser.add_argument("--into", type=existing_folder, default=REPOSITORY / "results", help="results/")
    arguments = parser.parse_args()
    if arguments.only != models and arguments.into == REPOSITORY / "results":
        parser.error("--only would leave the other models out of results/: say --into FOLDER")
    rows = []
    for name in arguments.only:
        sight = sight_row(name) | {"growth_measured": f"{growth(name):.2f}"}
        rows += [{"model": name, "scale": scale, **cost_row(name, scale), **sight} for scale in SCALES]
        print(name, flush=True)
    path = arguments.into / "models.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    hardware = f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}, float32"
    text = [
        "# What every model costs and sees\n\n",
        "Made by `python scripts/model_table.py`: untrained models, 32 x 32 images.\n",
        f"Measured exponents and activations: {hardware}.\nWhat a model sees is told of six layers at width 64 ",
        "(fully_connected: 16) on 16 x 16 positions, or of a convolutional\nnetwork at width 16, whatever the scale. ",
        "At paper scale recipe=paper has dropout on probabilities, which rules out the\nseparable product; exponents ",
        "are those of the faster way without it.\n",
    ]
    for scale in SCALES:
        table = models_table(read_csv(path), scale)
        text.append(f"\n## scale={scale}\n\n<!-- table: {scale} -->\n{table}<!-- end table -->\n")
    (arguments.into / "models.md").write_text("".join(text))


if __name__ == "__main__":
    with one_line_errors():
        main()
