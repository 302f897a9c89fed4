"""The Key-Exchange Convolutional Auto-Encoder (Section III-A of the paper).

Two encoders read the same radiograph: one gives the key hK (what makes the grade), the other the
non-key hN (the rest of the knee). The decoder turns a sum back into a radiograph:

    reconstruction  X^  = decode(hN + hK)
    exchange        X1' = decode(hN_1 + hK_2), which carries the label of X_2
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kecae_aug.names import class_names

SLOPE = 0.2  # of every LeakyReLU, Section III-A


class Latents(NamedTuple):
    """Key and non-key of a batch, each (B, C, h, w); h = w = 1 for the paper's vectors."""

    key: Tensor
    non_key: Tensor

    @property
    def sum(self) -> Tensor:
        """HN + hK, what is decoded into the reconstruction."""
        return self.non_key + self.key


class Block(NamedTuple):
    """Geometry of one encoder block and of the decoder block that undoes it (sizes in pixels)."""

    size_in: int
    size_out: int
    padding: int
    mirror_padding: int
    mirror_output_padding: int


@dataclass(frozen=True)
class KECAEConfig:
    """Everything that fixes the shape of a :class:`KECAE`.

    Args:
        image_size: side S of the square input, in pixels; 8 or more.
        width: channels of the first block; each block doubles them, up to ``latent_channels``.
        latent_channels: channels of the last block, that is of hK and hN.
        latent: ``"vector"`` encodes down to 1x1 (the paper), ``"spatial"`` stops at maps of at most
            ``latent_size`` pixels a side.
        latent_size: side of the maps for ``latent="spatial"``; not used for vectors.
        key_size: None for a key of the latent's own shape (the paper); a number for a key that passes through a
            vector of so many numbers, spread over the latent by a linear map: too narrow to carry a donor's knee.
        classes: names of the grades that the weights exchange, in the order of their labels.
    """

    image_size: int = 299
    width: int = 32
    latent_channels: int = 2048
    latent: Literal["vector", "spatial"] = "vector"
    latent_size: int = 8
    key_size: int | None = None
    classes: tuple[str, ...] = ("0", "2")

    def __post_init__(self) -> None:
        problems = []
        try:
            object.__setattr__(self, "classes", class_names(self.classes))
        except ValueError as error:
            problems.append(str(error))
        if self.image_size < 8:
            problems.append(f"image_size={self.image_size}: 8 or more is needed")
        if self.width < 1 or self.latent_channels < 1:
            problems.append(
                f"width={self.width}, latent_channels={self.latent_channels}: both must be positive"
            )
        if self.latent not in ("vector", "spatial"):
            problems.append(f"latent={self.latent!r}: accepted are 'vector' and 'spatial'")
        if self.latent == "spatial" and not 1 < self.latent_size < self.image_size:
            problems.append(f"latent_size={self.latent_size}: between 2 and image_size - 1 is needed")
        if self.key_size is not None and self.key_size < 1:
            problems.append(f"key_size={self.key_size}: 1 or more, or None for a key of the latent's shape")
        if len(self.classes) < 2:
            problems.append(f"classes={self.classes}: two or more names are needed")
        if problems:
            raise ValueError("KECAEConfig: " + "; ".join(problems))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The mirror rule: geometry of every block, from the image inwards.

        The encoder's 3x3 convolutions of stride 2 have no padding (a last 2x2 map needs padding 1);
        spatial latents pad by 1, so that a size that is a power of two halves exactly. The decoder's
        4x4 deconvolutions of stride 2 alone give only even sizes: padding and output padding are
        chosen so that block k gives back the size that the encoder's block k was given.
        """
        blocks, size = [], self.image_size
        end = self.latent_size if self.latent == "spatial" else 1
        while size > end:
            padding = 1 if self.latent == "spatial" or size < 3 else 0
            out = (size + 2 * padding - 3) // 2 + 1
            full = 2 * out + 2  # of the deconvolution without any padding
            mirror_padding = (full - size + 1) // 2
            blocks.append(Block(size, out, padding, mirror_padding, size - full + 2 * mirror_padding))
            size = out
        return tuple(blocks)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every encoder block; paper: 32, 64, 128, 256, 512, 1024, 2048."""
        n = len(self.blocks)
        inner = [min(self.width * 2**i, max(self.latent_channels, self.width)) for i in range(n - 1)]
        if self.latent == "spatial":  # a narrow map is the bottleneck, not a cap on the features before it
            inner = [self.width * 2**i for i in range(n - 1)]
        return (*inner, self.latent_channels)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of hK and of hN."""
        size = self.blocks[-1].size_out
        return (self.latent_channels, size, size)

    @property
    def key_branch(self) -> KECAEConfig:
        """Shape of the key's encoder: this one, or with ``key_size`` the vector one of 8 times ``width`` features."""
        if self.key_size is None:
            return self
        return replace(self, latent="vector", latent_channels=8 * self.width, key_size=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_dict` is its inverse."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KECAEConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: keys that are unknown or missing, all of them named.
        """
        known = {f.name for f in fields(cls)}
        values = {"key_size": None, **values}  # weights saved before there was the option
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown or missing:
            raise ValueError(
                f"KECAEConfig: unknown keys {unknown}, missing keys {missing}; accepted are exactly {sorted(known)}. "
                "The config.json may belong to another version of kecae-aug: take the one saved with the weights."
            )
        return cls(**{**values, "classes": tuple(values["classes"])})


PRESETS: dict[str, KECAEConfig] = {
    "paper": KECAEConfig(image_size=299, width=32, latent_channels=2048),
    "compact": KECAEConfig(image_size=128, width=16, latent_channels=1024),
    "tiny": KECAEConfig(image_size=64, width=16, latent_channels=128),
}


class PointConvTranspose2d(nn.ConvTranspose2d):
    """A deconvolution of 1x1 maps: each output pixel meets one kernel entry, so it is a matrix product.

    Same weights and outputs as ``ConvTranspose2d``, whose generic path spent a fifth of a training step
    of ``compact`` on this one layer.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, 1, 1) -> (B, C', h, w)."""
        if input.shape[2:] != (1, 1):
            raise ValueError(f"input: got maps of {tuple(input.shape[2:])}, accepted is (1, 1)")
        pad, extra = int(self.padding[0]), int(self.output_padding[0])
        size = self.kernel_size[0] - 2 * pad + extra
        kernel = self.weight[:, :, pad : pad + size, pad : pad + size]
        return (input.flatten(1) @ kernel.flatten(1)).view(-1, self.out_channels, size, size)


class Encoder(nn.Sequential):
    """One branch: (B, 1, S, S) in [-1, 1] -> (B, C, h, w).

    Blocks of ``Conv2d(3x3, stride 2) - BatchNorm - LeakyReLU(0.2)``; the first has no BatchNorm, which
    makes the paper's "20 layers" of seven blocks.
    """

    def __init__(self, config: KECAEConfig) -> None:
        layers: list[nn.Module] = []
        before = 1
        for i, (block, channels) in enumerate(zip(config.blocks, config.channels, strict=True)):
            layers.append(nn.Conv2d(before, channels, 3, 2, block.padding, bias=False))
            if i:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.LeakyReLU(SLOPE, inplace=True))
            before = channels
        super().__init__(*layers)


class Spread(nn.Sequential):
    """A narrow key over the whole latent: (B, F, 1, 1) features -> ``key_size`` numbers -> (B, C, h, w), all linear."""

    def __init__(self, config: KECAEConfig) -> None:
        assert config.key_size is not None
        super().__init__(
            nn.Flatten(),
            nn.Linear(config.key_branch.latent_channels, config.key_size, bias=False),
            nn.Linear(config.key_size, math.prod(config.latent_shape), bias=False),
            nn.Unflatten(1, config.latent_shape),
        )


class Decoder(nn.Sequential):
    """The encoder's mirror: (B, C, h, w) -> (B, 1, S, S) in [-1, 1].

    Blocks of ``ConvTranspose2d(4x4, stride 2) - BatchNorm - LeakyReLU(0.2)``, the last one ends in Tanh.
    """

    def __init__(self, config: KECAEConfig) -> None:
        layers: list[nn.Module] = []
        outs = (1, *config.channels[:-1])
        for block, channels, out in reversed(list(zip(config.blocks, config.channels, outs, strict=True))):
            deconv = PointConvTranspose2d if block.size_out == 1 else nn.ConvTranspose2d
            layers.append(
                deconv(channels, out, 4, 2, block.mirror_padding, block.mirror_output_padding, bias=False)
            )
            layers += [nn.BatchNorm2d(out), nn.LeakyReLU(SLOPE, inplace=True)] if out > 1 else [nn.Tanh()]
        super().__init__(*layers)


class KECAE(nn.Module):
    """Two encoders and one decoder; see the module's docstring for what is added to what.

    Images are float tensors (B, 1, S, S) in [-1, 1] with S = ``config.image_size``.
    """

    def __init__(self, config: KECAEConfig) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}  # of the weights, where they were loaded from a file
        self.key_encoder = Encoder(config.key_branch)
        self.spread = nn.Identity() if config.key_size is None else Spread(config)
        self.non_key_encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.apply(_kaiming)

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> KECAE:
        """A model with fresh weights: ``"paper"`` (299 px), ``"compact"`` (128 px) or ``"tiny"`` (64 px).

        Args:
            preset: a key of :data:`PRESETS`.
            **overrides: fields of :class:`KECAEConfig` that differ from the preset.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r}: accepted are {', '.join(map(repr, PRESETS))}")
        return cls(replace(PRESETS[preset], **overrides))

    @property
    def key_layers(self) -> list[nn.Module]:
        """What makes the numbers of a key: all of it but a narrow key's map over the latent, which is the decoder's too."""
        return [self.key_encoder, *list(self.spread.children())[:-2]]

    def encode(self, images: Tensor) -> Latents:
        """Key and non-key of (B, 1, S, S) images."""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (1, size, size):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, accepted is (B, 1, {size}, {size}) for these weights. "
                "KeyExchangeAugment resizes and takes 3 channels; kecae_aug.data.Preprocessing prepares files."
            )
        return Latents(self.spread(self.key_encoder(images)), self.non_key_encoder(images))

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) sums of a key and a non-key -> (B, 1, S, S) images in [-1, 1]."""
        if latent.ndim != 4 or latent.shape[1:] != self.config.latent_shape:
            c, h, w = self.config.latent_shape
            raise ValueError(f"latent: got shape {tuple(latent.shape)}, accepted is (B, {c}, {h}, {w})")
        images: Tensor = self.decoder(latent)
        return images

    def exchange(self, host: Tensor, donor: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Host images with the donors' key: decode(hN + (1 - s) hK + s hK').

        Args:
            host: (B, 1, S, S), gives the non-key.
            donor: (B, 1, S, S), gives the key.
            strength: s, a number or a (B,) tensor; 0 is the reconstruction of the host, 1 the paper's
                exchange (Section III-A), above 1 extrapolates.

        Returns:
            (B, 1, S, S) in [-1, 1]; at ``strength=1`` the donor's label is theirs.
        """
        own, other = self.encode(host), self.encode(donor)
        s = strength.view(-1, 1, 1, 1) if isinstance(strength, Tensor) else strength
        return self.decode(own.non_key + (1 - s) * own.key + s * other.key)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction X^ = decode(hN + hK)."""
        return self.decode(self.encode(images).sum)


@torch.no_grad()
def _kaiming(module: nn.Module) -> None:
    """Kaiming normal, fan-in, for LeakyReLU(0.2).

    A deconvolution of stride s reaches each output pixel from k*k / s*s inputs a channel; torch's own
    fan-in of ConvTranspose2d counts the output channels instead, which saturates the last Tanh.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_in", nonlinearity="leaky_relu")
    elif isinstance(module, nn.ConvTranspose2d):
        fan_in = module.in_channels * module.kernel_size[0] ** 2 / module.stride[0] ** 2
        nn.init.normal_(module.weight, std=(2 / (1 + SLOPE**2) / fan_in) ** 0.5)
