"""Vision transformers in the two small sizes, for small images and for the usual 224 pixels.

Every weight is in a convolution or a linear layer that runs as a module, attention projections included, so that
whatever works on layers works on all of them. The names of the modules (`patch_embed.proj`, `blocks.0.attn.qkv`,
`head`, ...) are those of the weights in common circulation, so that such weights load without renaming.

References:
    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1.
    Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021, table 1
    (the sizes Tiny and Small).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.errors import ModelError

__all__ = ["ViT"]

_EPSILON = 1e-6
_INITIAL_SPREAD = 0.02


class _PatchEmbed(nn.Module):
    """One token for each patch: a convolution that steps by its own size."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to tokens (batch, patches, width), row by row."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class _Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        count, width = tokens.shape[1:]
        split = self.qkv(tokens).view(-1, count, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split.unbind(0))
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, count, width))
        return result


class _MLP(nn.Module):
    """Two linear layers for each token by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        result: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return result


class _Block(nn.Module):
    """Attention and MLP, each normalised first and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = _MLP(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens))
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class ViT(nn.Module):
    """A vision transformer that reads the class off one token of its own.

    Args:
        num_classes: Number of logits.
        channels: Channels of the input.
        image_size: Side of the square input in pixels.
        patch: Side of a patch in pixels; it divides the image's.
        width: Length of a token; the number of heads divides it.
        depth: Number of blocks.
        heads: Attention heads of each block.

    Raises:
        ModelError: The image does not consist of whole patches.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int = 3,
        image_size: int = 32,
        patch: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ModelError(
                f"an image of {image_size} pixels does not consist of patches of {patch}: "
                f"choose an image size that {patch} divides"
            )
        self.image_size = image_size
        self.patch_embed = _PatchEmbed(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.head = nn.Linear(width, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=_INITIAL_SPREAD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INITIAL_SPREAD)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, channels, image_size, image_size) to logits (batch, num_classes)."""
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ModelError(
                f"this vision transformer takes images of {self.image_size} x {self.image_size} pixels, not "
                f"{images.shape[2]} x {images.shape[3]}: create it with the image_size of the data"
            )
        tokens = self.patch_embed(images)
        first = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = self.blocks(torch.cat([first, tokens], dim=1) + self.pos_embed)
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits
