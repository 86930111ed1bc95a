"""The control models: global and unshared convolution, token mixing, involution, non-local blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnconv.mixers.convolution import Convolution
from attnconv.mixers.global_convolution import DepthwiseGlobal
from attnconv.mixers.involution import Involution
from attnconv.mixers.locally_connected import FullyConnected, LocallyConnected
from attnconv.mixers.token_mlp import TokenMlp
from attnconv.models.resnet import NonLocalBlock, ResNet
from mixers import oracles

WIDTH, GRID = 4, (3, 4)
X = torch.randn(2, *GRID, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BUILDERS = {
    "convolution": lambda grid=GRID: Convolution(WIDTH, 1, grid),
    "circular": lambda grid=GRID: DepthwiseGlobal(WIDTH, 1, grid),
    "zeros": lambda grid=GRID: DepthwiseGlobal(WIDTH, 1, grid, padding="zeros"),
    "token_mlp": lambda grid=GRID: TokenMlp(WIDTH, 1, grid, hidden=5),
    "locally_connected": lambda grid=GRID: LocallyConnected(WIDTH, 1, grid),
    "fully_connected": lambda grid=GRID: FullyConnected(WIDTH, 1, grid),
    "involution": lambda grid=GRID: Involution(WIDTH, 1, grid, kernel_size=3, group_width=2, reduction=2),
    "nonlocal": lambda grid=GRID: awake(NonLocalBlock(WIDTH)),
}


def awake(block):
    """A non-local block with weights that make it differ from the identity."""
    nn.init.ones_(block.norm.weight)
    return block


def build(name, grid=GRID):
    torch.manual_seed(0)
    return BUILDERS[name](grid).double()


def global_oracle(mixer, x):
    """Compute pixel by pixel: the weight of each shift times the pixel there, if it exists."""
    _, height, width, _ = x.shape
    _, rows, columns = mixer.weight.shape
    out = []
    for r in range(height):
        for c in range(width):
            total = mixer.bias.expand(len(x), -1)
            for i in range(rows):
                for j in range(columns):
                    row, column = r + i - rows // 2, c + j - columns // 2
                    if mixer.padding == "circular":
                        row, column = row % height, column % width
                    if 0 <= row < height and 0 <= column < width:
                        total = total + mixer.weight[:, i, j] * x[:, row, column]
            out.append(total)
    return torch.stack(out, dim=1).view(x.shape)


def untied_oracle(mixer, x):
    """Apply one kernel per pixel; unfold's order is channel, row, column."""
    _, height, width, channels = x.shape
    size = mixer.kernel_size
    out = []
    for r in range(height):
        for c in range(width):
            total = mixer.bias[r * width + c].expand(len(x), -1)
            kernel = mixer.weight[r * width + c].view(channels, size, size, channels)
            for i in range(size):
                for j in range(size):
                    row, column = r + i - size // 2, c + j - size // 2
                    if 0 <= row < height and 0 <= column < width:
                        total = total + x[:, row, column] @ kernel[:, i, j]
            out.append(total)
    return torch.stack(out, dim=1).view(x.shape)


def involution_oracle(mixer, x):
    """Follow the definition, one pixel's kernels at a time (batch norm uses its running statistics)."""
    _, height, width, channels = x.shape
    size, group_width = mixer.kernel_size, channels // mixer.groups
    out = torch.zeros_like(x)
    for image in range(len(x)):
        for r in range(height):
            for c in range(width):
                reduced = mixer.norm(mixer.reduce(x[image, r, c])[None])[0].relu()
                kernels = mixer.expand(reduced).view(mixer.groups, size, size)
                for channel in range(channels):
                    total = 0.0
                    for i in range(size):
                        for j in range(size):
                            row, column = r + i - size // 2, c + j - size // 2
                            if 0 <= row < height and 0 <= column < width:
                                total = total + kernels[channel // group_width, i, j] * x[image, row, column, channel]
                    out[image, r, c, channel] = total
    return out


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("circular", global_oracle),
        ("zeros", global_oracle),
        ("locally_connected", untied_oracle),
        ("involution", involution_oracle),
    ],
)
def test_outputs_and_gradients_match_the_loop_oracle(name, oracle):
    mixer = build(name).eval()
    parameters = [parameter for parameter in mixer.parameters() if parameter.requires_grad]
    oracles.assert_same_with_gradients(
        (mixer, parameters), (lambda image: oracle(mixer, image), parameters), X, tolerance=1e-10
    )


def test_gathered_involution_matches_the_loop_oracle(monkeypatch):
    monkeypatch.setattr("attnconv.mixers.involution.DENSE_UP_TO_WINDOWS", 0)
    monkeypatch.setattr(Involution, "_apply_dense", None)
    mixer = build("involution").eval()
    parameters = list(mixer.parameters())
    oracles.assert_same_with_gradients(
        (mixer, parameters), (lambda image: involution_oracle(mixer, image), parameters), X, tolerance=1e-10
    )


def test_circular_padding_matches_pytorch():
    grid = (5, 5)
    mixer, reference = (
        build("circular", grid),
        nn.Conv2d(WIDTH, WIDTH, 5, groups=WIDTH, padding=2, padding_mode="circular"),
    )
    x = torch.randn(2, *grid, WIDTH, dtype=torch.float64)
    reference.double().load_state_dict({"weight": mixer.weight[:, None].detach(), "bias": mixer.bias.detach()})
    expected = reference(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


def test_locally_connected_with_tied_weights_is_a_convolution():
    mixer, convolution = build("locally_connected"), build("convolution")
    kernel = convolution.convolution.weight.flatten(1).T  # unfold's order, outputs last
    with torch.no_grad():
        mixer.weight.copy_(kernel.expand_as(mixer.weight))
        mixer.bias.copy_(convolution.convolution.bias.expand_as(mixer.bias))
    torch.testing.assert_close(mixer(X), convolution(X), rtol=0, atol=1e-12)


def test_fully_connected_can_represent_a_locally_connected_layer():
    """With the Jacobian of an unshared convolution as its matrix, it equals that convolution."""
    mixer, untied = build("fully_connected"), build("locally_connected")
    zero = torch.zeros(1, *GRID, WIDTH, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(untied, zero).reshape(mixer.linear.weight.shape)
    with torch.no_grad():
        mixer.linear.weight.copy_(jacobian)
        mixer.linear.bias.copy_(untied(zero).flatten())
    torch.testing.assert_close(mixer(X), untied(X), rtol=0, atol=1e-12)


def test_token_mlp_applies_the_same_mlp_to_every_channel():
    mixer = build("token_mlp")
    for channel in range(WIDTH):
        column = X[0, ..., channel].flatten()
        expected = mixer.contract(F.gelu(mixer.expand(column)))
        torch.testing.assert_close(mixer(X)[0, ..., channel].flatten(), expected, rtol=0, atol=1e-12)


def test_non_local_block_starts_as_the_identity_and_matches_its_definition():
    block = NonLocalBlock(WIDTH).double()
    torch.testing.assert_close(block(X), X, rtol=0, atol=0)
    block = awake(block).eval()
    scores = block.theta(X).flatten(1, 2) @ block.phi(X).flatten(1, 2).transpose(1, 2)
    averages = scores.softmax(-1) @ block.g(X).flatten(1, 2)
    expected = X + block.norm(block.out(averages).flatten(0, 1)).view(X.shape)
    torch.testing.assert_close(block(X), expected, rtol=0, atol=1e-12)


def test_resnet_with_untrained_non_local_blocks_equals_the_plain_resnet():
    torch.manual_seed(0)
    plain = ResNet((3, 16, 16), 4, [1, 1], 4).eval()
    torch.manual_seed(0)
    attentive = ResNet((3, 16, 16), 4, [1, 1], 4, nonlocal_after=[1, 2]).eval()
    own = {name.replace("blocks.1.", "blocks.2."): tensor for name, tensor in plain.state_dict().items()}
    attentive.load_state_dict(own, strict=False)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(attentive(images), plain(images))


def test_squeeze_and_excitation_weights_channels_by_their_means():
    torch.manual_seed(0)
    block = ResNet((3, 8, 8), 4, [1], 4, squeeze_reduction=2).blocks[0].squeeze.eval()
    maps = torch.randn(2, 4, 8, 8)
    weights = torch.sigmoid(block.fc2(F.relu(block.fc1(maps.mean((2, 3), keepdim=True)))))
    torch.testing.assert_close(block(maps), maps * weights)


@pytest.mark.parametrize(
    ("mixer", "inputs"),
    [
        (lambda: LocallyConnected(8, 1, (6, 6)), 8 * 9),
        (lambda: DepthwiseGlobal(16, 1, (8, 8)), 8 * 8),
        (lambda: DepthwiseGlobal(16, 1, (8, 8), padding="zeros"), 15 * 15),
    ],
)
def test_weights_start_like_those_of_a_convolution_with_as_many_inputs(mixer, inputs):
    torch.manual_seed(0)
    mixer, linear = mixer(), nn.Linear(inputs, 100)  # nn.Linear and nn.Conv2d start alike
    assert mixer.weight.std().item() == pytest.approx(linear.weight.std().item(), rel=0.1)
    assert 0 < mixer.bias.abs().max() <= inputs**-0.5


@pytest.mark.parametrize("name", BUILDERS)
def test_bf16_stays_near_float64(name):
    mixer = build(name).eval()
    in_float32 = name in ("circular", "zeros", "nonlocal")  # FFTs, and a sum with the input
    oracles.assert_bf16_stays_near(mixer, X.clone(), torch.float32 if in_float32 else torch.bfloat16)


@pytest.mark.parametrize("x", [torch.zeros(2, *GRID, 1), torch.zeros(2, *GRID, WIDTH, dtype=torch.long)])
def test_a_global_convolution_refuses_other_channels_and_integers(x):
    with pytest.raises(ValueError, match=f"needs {WIDTH} channels of floating-point numbers, not"):
        DepthwiseGlobal(WIDTH, 1, GRID)(x)


def test_a_grid_may_be_a_list():
    mixer = DepthwiseGlobal(WIDTH, 1, list(GRID))
    assert mixer(torch.zeros(2, *GRID, WIDTH)).shape == (2, *GRID, WIDTH)


@pytest.mark.parametrize(
    ("builder", "complaint"),
    [
        (lambda: DepthwiseGlobal(WIDTH, 1, GRID, padding="reflect"), "circular, zeros"),
        (lambda: Convolution(WIDTH, 1, GRID, kernel_size=9), "kernel_size=9 must be at most 7 on 3x4"),
        (lambda: LocallyConnected(WIDTH, 1, GRID, kernel_size=5), "larger than the map of 3x4"),
        (lambda: Involution(WIDTH, 1, GRID, kernel_size=3), "width=4 is not divisible by group_width=16"),
        (lambda: Involution(WIDTH, 1, GRID, kernel_size=4, group_width=2), "odd and at least 1, not 4"),
        (lambda: Involution(WIDTH, 1, GRID, kernel_size=3, group_width=2, reduction=5), r"1\.\.width=4, not 5"),
        (lambda: TokenMlp(WIDTH, 1, GRID, hidden=0), "at least 1, not 0"),
        (lambda: ResNet((3, 8, 8), 4, [1], 4, nonlocal_after=[2]), r"stages in 1\.\.1"),
        (lambda: ResNet((3, 8, 8), 4, [1], 4, squeeze_reduction=0), "at least 1, not 0"),
    ],
)
def test_invalid_options_are_refused(builder, complaint):
    with pytest.raises(ValueError, match=complaint):
        builder()


@pytest.mark.parametrize("name", ["circular", "zeros", "token_mlp", "locally_connected", "fully_connected"])
def test_mixers_with_a_fixed_map_size_refuse_other_sizes(name):
    with pytest.raises(ValueError, match="fit maps of 3x4 positions only, this one is 4x4"):
        build(name)(torch.randn(1, 4, 4, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("name", ["circular", "zeros", "locally_connected", "involution"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_networks_in_16_bits_run(name, kind):
    assert build(name).to(kind)(X.to(kind)).dtype == kind
