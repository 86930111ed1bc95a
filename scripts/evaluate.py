"""Evaluate a trained network: `python scripts/evaluate.py RUN [--data FOLDER]`

    python scripts/evaluate.py outputs/default/sa_quadratic/mini-modern/frac1/seed0     on the run's own test images
    python scripts/evaluate.py RUN --data photos --resize       on photos/test_images.npy and photos/test_labels.npy
    python scripts/evaluate.py sa_quadratic                     a network in results/weights/, by the name of its model

Prints the accuracy, the accuracy of each class, and the classes that it is most often confused with. Images are uint8
(N, H, W, C), and labels are integers. The computation uses float32, whatever the precision of the run.
`attnconv.load(RUN).evaluate()` returns the same numbers and the confusion matrix.
"""

from attnconv.errors import one_line_errors
from attnconv.settings.arguments import ScriptParser, a_place


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "run", type=a_place, metavar="RUN", help="a run folder, or the name of a network in results/weights/"
    )
    parser.add_argument(
        "--data", type=a_place, metavar="FOLDER", help="labeled images (default: the test images of the run)"
    )
    parser.add_argument("--resize", action="store_true", help="convert images of other sizes and channels")
    parser.add_device()
    parser.add_trust()
    arguments = parser.parse_args()
    from attnconv.runs.load import load  # imports torch

    network = load(arguments.run, device=arguments.device, trusted=arguments.trust)
    print(network.evaluate(arguments.data, resize=arguments.resize))


if __name__ == "__main__":
    with one_line_errors():
        main()
