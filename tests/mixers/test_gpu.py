"""All models' mixers in bf16 on a GPU against float64 on the CPU, which the loop oracles verify."""

from pathlib import Path

import pytest
import torch

from attnconv.models.build import build_model
from conftest import compose

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
MIXERS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "mixer:" in path.read_text())


@pytest.mark.gpu
@pytest.mark.parametrize("normalizer", ["softmax", "relu", "sigmoid"])
@pytest.mark.parametrize("name", MIXERS)
def test_bf16_on_a_gpu_stays_near_float64(name, normalizer):
    """Outputs within 5% of the largest entry, gradients within 10% of their norm, as ReLU's gradient has jumps."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    overrides = [f"model={name}", "scale=mini"]
    if "normalizer" in (CONFIGS / f"{name}.yaml").read_text():
        overrides.append(f"model.mixer.normalizer={normalizer}")
    elif normalizer != "softmax":
        pytest.skip("has no scores to normalize")
    torch.manual_seed(0)
    mixer = build_model(compose(overrides).model, (3, 32, 32), 10).layers[0].mixer
    x = torch.randn(4, 8, 8, 64, dtype=torch.float64)

    def run(device, kind):
        image = x.to(device, kind).requires_grad_()
        layer = mixer.to(device, kind)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            out = layer(image)
        (gradient,) = torch.autograd.grad(out.double().square().sum(), image)
        return out.double().cpu(), gradient.double().cpu()

    (exact, exact_gradient), (rough, gradient) = run("cpu", torch.float64), run("cuda", torch.float32)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    assert (gradient - exact_gradient).norm() < 0.1 * exact_gradient.norm()
