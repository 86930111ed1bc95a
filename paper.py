"""The paper in one file: self-attention can be a convolution, and does training make it one? `python paper.py`

Cordonnier, Loukas and Jaggi, "On the Relationship between Self-Attention and Convolutional Layers" (ICLR 2020). This
file needs PyTorch, and scikit-learn for its images, and nothing of src/attnconv. The tests compare that code with it.

Axes: B images, H W rows and columns, Q K query and key pixels (Q = K = H*W), N heads, D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shifts(height: int, width: int) -> Tensor:
    """Return the shift from every query to every key, key minus query, in pixels (Q, K, 2)."""
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    return pixels[None, :] - pixels[:, None]


class QuadraticAttention(nn.Module):
    """N Gaussian heads (Lemma 2). Each averages whole pixels; the N averages are concatenated and projected, N*D -> D.

    A head scores the key at shift s with -alpha |s - center|^2. Softmax makes that a Gaussian around the pixel that is
    `center` away from the query. As alpha grows the Gaussian shrinks, until one pixel gets all of the attention.
    """

    def __init__(self, width: int, heads: int = 9, alpha: float = 0.5) -> None:
        super().__init__()
        self.centers = nn.Parameter(2 * torch.randn(heads, 2))  # in pixels
        self.alpha = nn.Parameter(torch.full((heads,), alpha))  # in 1/pixels^2
        self.value = nn.Linear(heads * width, width)

    def probabilities(self, height: int, width: int) -> Tensor:
        """Return what each head gives each key, (N, Q, K): a function of positions alone, the same for all images."""
        offsets = shifts(height, width) - self.centers[:, None, None]
        return (-self.alpha[:, None, None] * offsets.square().sum(-1)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        _, height, width, _ = x.shape
        averages = torch.einsum("nqk,bkd->bqnd", self.probabilities(height, width), x.flatten(1, 2))
        return self.value(averages.flatten(2)).unflatten(1, (height, width))


def attention_from(convolution: nn.Conv2d, alpha: float = 200.0) -> QuadraticAttention:
    """Return the attention that computes a K x K convolution (Theorem 1): one head per tap (Lemma 1).

    They are equal away from the border. A head's center is the shift of its tap, and its value matrix is the weights of
    its tap.
    """
    assert convolution.bias is not None
    width, size = convolution.in_channels, convolution.kernel_size[0]
    attention = QuadraticAttention(width, size**2, alpha)
    taps = torch.arange(size) - size // 2
    with torch.no_grad():
        attention.centers.copy_(torch.cartesian_prod(taps, taps))
        attention.value.weight.copy_(convolution.weight.permute(0, 2, 3, 1).flatten(1))
        attention.value.bias.copy_(convolution.bias)
    return attention


def check_theorem() -> None:
    """Compare nine heads with a random 3 x 3 convolution: they differ at the border, where only it sees zeros."""
    convolution = nn.Conv2d(16, 16, 3, padding=1)
    images = torch.randn(2, 10, 10, 16)
    convolved = convolution(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    difference = (convolved - attention_from(convolution)(images)).abs()
    inside = difference[:, 1:-1, 1:-1].max().item()
    print(f"a 3x3 convolution as nine heads: difference {inside:.0e} inside, {difference.max():.1f} at the border")
    assert inside < 1e-5


class Layer(nn.Module):
    """Attention, then a feed-forward network, each added to its input and normalized after it."""

    def __init__(self, mixer: QuadraticAttention, hidden: int) -> None:
        super().__init__()
        width = mixer.value.out_features
        self.mixer, self.projection = mixer, nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        x = self.norms[0](x + self.projection(self.mixer(x)))
        return self.norms[1](x + self.feed_forward(x))


class Network(nn.Module):
    """The paper's network, smaller: layers of attention, the mean over pixels, a linear classifier."""

    def __init__(self, channels: int, classes: int, width: int = 32, hidden: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(channels, width)
        self.mixers = [QuadraticAttention(width) for _ in range(layers)]
        self.layers = nn.Sequential(*(Layer(mixer, hidden) for mixer in self.mixers))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, C) -> logits (B, classes)."""
        return self.head(self.layers(self.stem(images)).mean((1, 2)))


def train(epochs: int = 8, batch: int = 50) -> tuple[Network, float]:
    """Train on four fifths of scikit-learn's 8 x 8 digits; return the network and its accuracy on the rest."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[..., None] / 8 - 1
    labels = torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 4
    images_seen, labels_seen = images[~test], labels[~test]
    network = Network(1, 10)
    optimizer = torch.optim.AdamW(network.parameters())
    steps = epochs * -(-len(labels_seen) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(labels_seen)).split(batch):
            loss = F.cross_entropy(network(images_seen[part]), labels_seen[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        correct = network(images[test]).argmax(1) == labels[test]
    return network, correct.float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    check_theorem()
    network, accuracy = train()
    print(f"digits never seen: {accuracy:.1%} correct; centers of the first layer's heads, (down, right) in pixels:")
    for down, right in network.mixers[0].centers.tolist():
        print(f"  {down:+.1f} {right:+.1f}")
    centers = torch.cat([mixer.centers.detach() for mixer in network.mixers])
    near = ((centers - centers.round().clamp(-1, 1)).norm(dim=1) < 0.5).sum()
    print(f"{near} of {len(centers)} heads look within half a pixel of a tap of a 3x3 kernel; a convolution needs all")
