"""Vision Transformer: learned absolute positions, a class token, content attention.

timm's implementation (pre-norm, Dosovitskiy et al. 2021), at the width and depth of the study's other models.
"""

from torch import nn

from attnconv.models.backbone import check_dropouts, check_patch, check_sizes


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
    """Return a ViT: images (B, C, height, width) -> logits (B, classes). The arguments are those of `Backbone`.

    Raises:
        ValueError: a size or dropout is out of range, heads do not divide the width, or patches do not divide the
            image.
    """
    from timm.models.vision_transformer import VisionTransformer

    check_sizes(patch=patch, layers=layers, heads=heads, width=width, hidden=hidden)
    check_dropouts(dropout=dropout, attention_dropout=attention_dropout)
    check_patch(image_shape, patch)
    channels, height, columns = image_shape
    if width % heads:
        raise ValueError(f"width={width} is not divisible by heads={heads}")
    return VisionTransformer(
        img_size=(height, columns),
        patch_size=patch,
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        depth=layers,
        num_heads=heads,
        mlp_ratio=(hidden + 0.5) / width,  # timm rounds width x ratio down
        proj_drop_rate=dropout,
        attn_drop_rate=attention_dropout,
    )
