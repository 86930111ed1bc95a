"""Measure how sharp heads must be to compute a convolution. Writes results/alpha_error.csv; takes seconds.

A random 3 x 3 convolution of 32 channels on 16 x 16 pixels is converted to attention with nine quadratic heads in
float32. For each alpha, the error is the largest difference from the convolution in float64, divided by the largest
output. The paper says that alpha = 46 suffices in float32 (after Lemma 2).
"""

from attnconv.errors import one_line_errors
from attnconv.files import csv_text, write_whole
from attnconv.settings.arguments import ScriptParser

ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 18.0, 32.0, 46.0, 64.0, 104.0)


def errors() -> list[dict[str, str]]:
    """Return one row for each alpha."""
    import torch  # --help does not need it
    from torch import nn

    from attnconv.analysis.conv_to_attention import ConvolutionAsAttention

    torch.manual_seed(0)
    convolution, images = nn.Conv2d(32, 32, 3, padding=1), torch.randn(8, 32, 16, 16)
    rows = []
    with torch.no_grad():
        attentions = {alpha: ConvolutionAsAttention(convolution, alpha) for alpha in ALPHAS}
        found = {alpha: attention(images).double() for alpha, attention in attentions.items()}
        truth = convolution.double()(images.double())
    for alpha, outputs in found.items():
        rows.append({"alpha": f"{alpha:g}", "error": f"{float((outputs - truth).abs().max() / truth.abs().max()):.3g}"})
    return rows


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_results()
    results = parser.parse_args().results
    path = results / "alpha_error.csv"
    write_whole(path, csv_text(("alpha", "error"), errors()).encode())
    print(path)


if __name__ == "__main__":
    with one_line_errors():
        main()
