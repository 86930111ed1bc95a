"""Classify images: `python scripts/predict.py RUN IMAGE [IMAGE ...]`

    python scripts/predict.py outputs/default/sa_quadratic/mini-modern/frac1/seed0 cat.png dog.jpg --resize
    python scripts/predict.py sa_quadratic cat.png --resize      a network in results/weights/, by the name of its model

Prints one line per image: its file and the most probable classes with their probabilities. Images must have the size
and channels of the training images; --resize crops them around their center and scales them. No data set is needed.
`attnconv.load(RUN).predict(images)` does the same.
"""

from attnconv.errors import one_line_errors
from attnconv.settings.arguments import ScriptParser, a_path, a_place, positive


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "run", type=a_place, metavar="RUN", help="a run folder, or the name of a network in results/weights/"
    )
    parser.add_argument("images", type=a_path, nargs="+", metavar="IMAGE", help="image files, such as .png and .jpg")
    parser.add_argument("--resize", action="store_true", help="convert images of other sizes and channels")
    parser.add_argument("--top", type=positive, default=3, help="number of classes per image (default: 3)")
    parser.add_device()
    parser.add_trust()
    arguments = parser.parse_intermixed_args()
    from attnconv.runs.load import load  # imports torch

    network = load(arguments.run, device=arguments.device, trusted=arguments.trust)
    probabilities = network.predict_proba(arguments.images, resize=arguments.resize)
    width = max(len(str(path)) for path in arguments.images)
    for path, row in zip(arguments.images, probabilities, strict=True):
        best = row.argsort()[::-1][: arguments.top]
        print(f"{path!s:<{width}}  " + ", ".join(f"{network.class_names[index]} {row[index]:.1%}" for index in best))


if __name__ == "__main__":
    with one_line_errors():
        main()
