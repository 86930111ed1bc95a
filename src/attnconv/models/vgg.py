"""VGG-11 with batch norm (Simonyan and Zisserman 2015), in its form for 32 x 32 images: a linear head on one position.

Eight 3 x 3 convolutions in five stages, each ended by a 2 x 2 max-pooling; the three large linear layers of the
ImageNet network are replaced by one, as is usual on CIFAR-10: 9,231,114 parameters at width 64.
"""

from torch import Tensor, nn

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # convolutions' channels, in widths


class Vgg(nn.Module):
    """VGG-11: images (B, C, height, width) -> logits (B, classes).

    Args:
        image_shape: (C, height, width) of the images, in pixels; at least 32 x 32, which five poolings halve.
        classes: number of classes.
        width: channels of the first stage; need not be whole, every layer rounds.

    Raises:
        ValueError: a width below 1, or images too small.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, width: float):
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        if min(image_shape[1:]) < 2 ** len(STAGES):
            raise ValueError(f"five poolings need images of 32x32 pixels, not {image_shape[1]}x{image_shape[2]}")
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for stage in STAGES:
            for multiple in stage:
                out = round(width * multiple)
                # The bias that batch norm makes idle is kept: it is in every published parameter count.
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean(dim=(2, 3)))
