"""Measure the cost and the receptive field of untrained models. Writes results/models.csv and results/models.md.

    python scripts/model_table.py              20 minutes on two CPU cores, most of them for the measured exponents
    python scripts/model_table.py --only sa_quadratic conv3x3 --results /tmp

Columns: parameters; FLOPs per image, forward, as the paper counts them and in full; bytes of activations that training
keeps per image; the exponent of time in the number of pixels, in theory and measured three times; the receptive
field in pixels after 1 to 6 layers, in theory and in effect; how a layer responds to shifted and shuffled maps (0:
equivariant; unrelated outputs give 1.4); whether its kernels depend on the content. `attnconv.analysis.profile` has the
definitions.
"""

from typing import Any

from attnconv.config import RESULTS, compose
from attnconv.errors import one_line_errors
from attnconv.files import csv_text, require_targets, write_whole
from attnconv.report.tables import models_table, read_models
from attnconv.settings.arguments import ScriptParser, check_names

SCALES = ("paper", "mini")
REPEATS = 3  # of the measured exponent
LEGEND = """\
- **FLOPs**: the paper counts linear and convolutional layers only; "in full" counts every product.
- **Receptive field**: the side, in pixels, of the square that can influence one position after 1, 3 and all layers.
  **Effective**: the side of the square that holds 95% of the gradient (Luo et al., 2016).
- **Shift and shuffle error**: the relative difference between the output for a shifted (shuffled) map and the shifted
  (shuffled) output; for shifts, away from the border. 0 means equivariant; two unrelated outputs give 1.4.
- **Depends on content**: whether the weights between positions depend on the image.
- **Exponent**: time grows with the number of pixels to this power, measured between 32 x 32 and 64 x 64 positions.
  Measurements of one model can differ by a few tenths.
"""


def measured(models: list[str]) -> list[dict[str, Any]]:
    """Return one row for each model and scale, and print each model when it is measured."""
    from attnconv.analysis.profile import cost_row, growth, receptive_field_row

    rows = []
    for name in models:
        exponents = " ".join(f"{growth(name):.2f}" for _ in range(REPEATS))
        fields = receptive_field_row(name) | {"growth_measured": exponents}
        for scale in SCALES:
            node = compose([f"model={name}", f"scale={scale}"]).model
            rows.append({"model": name, "scale": scale, **cost_row(node), **fields})
        print(name, flush=True)
    return rows


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="measure only these: files of configs/model/")
    parser.add_results()
    arguments = parser.parse_args()
    import torch  # --help does not need it

    from attnconv.analysis.profile import study_models
    from attnconv.runs.provenance import describe_device

    models = arguments.only or study_models()
    check_names(parser, "--only", models, study_models())
    if arguments.only and arguments.results.resolve() == RESULTS.resolve():
        parser.error("--only would remove the other models from results/: add --results FOLDER")
    path, page = arguments.results / "models.csv", arguments.results / "models.md"
    require_targets(path, page)
    rows = measured(models)
    write_whole(path, csv_text(rows[0], rows).encode())
    hardware = f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}, float32"
    parts = [
        "# Cost and receptive field of all models\n\n",
        "Made by `python scripts/model_table.py`: untrained models, 32 x 32 images.\n",
        f"Measured exponents and activations: {hardware}.\nReceptive fields are measured for six layers at width 64 ",
        "(fully_connected: 16) on 16 x 16 positions of 2 x 2\npixels, as at paper scale, and for convolutional ",
        "networks at width 16. At paper scale, recipe=paper has dropout\non probabilities, so the separable product ",
        "does not apply; the exponents are those of the faster product, without\ndropout.\n\n",
        LEGEND,
    ]
    for scale in SCALES:
        table = models_table(read_models(path), scale)
        parts.append(f"\n## scale={scale}\n\n<!-- table: {scale} -->\n{table}<!-- end table -->\n")
    write_whole(page, "".join(parts).encode())


if __name__ == "__main__":
    with one_line_errors():
        main()
