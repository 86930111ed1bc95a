"""Vision Transformer, the field's default: absolute learned positions, a class token, content attention.

timm's implementation (pre-norm, Dosovitskiy et al. 2021), at the width and depth of the study's other models.
"""

from torch import nn


def vit(
    image_shape: tuple[int, int, int],
    classes: int,
    patch: int,
    layers: int,
    heads: int,
    width: int,
    hidden: int,
    dropout: float,
    attention_dropout: float,
) -> nn.Module:
    """A ViT: images (B, C, height, width) -> logits (B, classes). Arguments are those of `Backbone`.

    Raises:
        ValueError: the width is not divisible by the heads, or the image by the patch.
    """
    from timm.models.vision_transformer import VisionTransformer

    channels, height, columns = image_shape
    if height % patch or columns % patch:
        raise ValueError(f"images of {height}x{columns} pixels do not divide into patches of {patch}x{patch}")
    if width % heads:
        raise ValueError(f"width={width} is not divisible by heads={heads}, which split it")
    return VisionTransformer(
        img_size=(height, columns),
        patch_size=patch,
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        depth=layers,
        num_heads=heads,
        mlp_ratio=hidden / width,
        proj_drop_rate=dropout,
        attn_drop_rate=attention_dropout,
    )
