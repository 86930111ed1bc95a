"""VGG-11 with batch norm (Simonyan and Zisserman 2015) for 32 x 32 images, with one linear layer as its head.

Eight 3 x 3 convolutions in five stages, each followed by a 2 x 2 max-pooling. One linear layer replaces the three large
ones of the ImageNet network, as is usual on CIFAR-10: 9,231,114 parameters at width 64.
"""

from torch import Tensor, nn

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # channels of the convolutions, in multiples of the width


class Vgg(nn.Module):
    """VGG-11: images (B, C, height, width) -> logits (B, classes).

    Args:
        image_shape: (C, height, width) of the images, in pixels; at least 32 x 32, because five poolings halve it.
        classes: number of classes.
        width: channels of the first stage; may be fractional: each layer rounds.

    Raises:
        ValueError: the width is below 1, or the images are too small.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, width: float):
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        if min(image_shape[1:]) < 2 ** len(STAGES):
            raise ValueError(
                f"the images must be at least 32x32 pixels, because five poolings halve them, "
                f"not {image_shape[1]}x{image_shape[2]}"
            )
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for stage in STAGES:
            for multiple in stage:
                out = round(width * multiple)
                # Batch norm cancels this bias, but all published parameter counts include it.
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean(dim=(2, 3)))
