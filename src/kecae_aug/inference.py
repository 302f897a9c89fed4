"""The same network for inference only: what training needs is folded away, keys and non-keys apart.

``FastKECAE(model)`` gives the outputs of ``model`` in eval mode (float32: to 1e-4) from
- BatchNorm folded into the kernels before it;
- the first deconvolution of 1x1 latents as one matrix product with a packed kernel;
- the last deconvolution, to one channel, as a 2x2 convolution to four channels and a pixel shuffle, since
  generic deconvolutions reach a tenth of the machine's speed with one output channel;
- channels_last, and half precision where asked for.

benchmarks/throughput.py measures it against the plain network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kecae_aug.model import KECAE, SLOPE, Encoder, Latents

_End = Callable[[Tensor], Tensor]
AMP_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FastKECAE(nn.Module):
    """Inference copy of a :class:`~kecae_aug.model.KECAE`; no gradients, no training.

    Args:
        model: the model; not changed.
        dtype: of kernels and activations: float32, bfloat16 or float16. Inputs and outputs are float32.
        channels_last: the memory format of the activations.
        compile: pass encoders and decoder to ``torch.compile`` (needs a C++ compiler on CPUs; the first
            batch of each size takes half a minute).
    """

    def __init__(
        self,
        model: KECAE,
        dtype: torch.dtype = torch.float32,
        *,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if dtype not in AMP_DTYPES:
            accepted = ", ".join(map(str, AMP_DTYPES))
            raise ValueError(f"amp_dtype={dtype}: accepted are {accepted}, or None for float32")
        self.config, self.dtype = model.config, dtype
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.key = nn.Sequential(*_folded_encoder(model.key_encoder))
        self.non_key = nn.Sequential(*_folded_encoder(model.non_key_encoder))
        self.decoder = _folded_decoder(model)
        self.to(dtype=dtype).to(memory_format=self.format).eval().requires_grad_(False)
        if compile:
            for part in (self.key, self.non_key, self.decoder):
                part.compile(dynamic=True)

    @property
    def device(self) -> torch.device:
        """Where the kernels are."""
        return next(self.parameters()).device

    def encode(self, images: Tensor) -> Latents:
        """Key and non-key of (B, 1, S, S) in [-1, 1], both (B, C, h, w) float32."""
        return Latents(self.encode_key(images), self.encode_non_key(images))

    def encode_key(self, images: Tensor) -> Tensor:
        """Key alone, half the work: (B, 1, S, S) -> (B, C, h, w) float32."""
        out: Tensor = self.key(self._cast(images))
        return out.float()

    def encode_non_key(self, images: Tensor) -> Tensor:
        """Non-key alone: (B, 1, S, S) -> (B, C, h, w) float32."""
        out: Tensor = self.non_key(self._cast(images))
        return out.float()

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) sums of a key and a non-key -> (B, 1, S, S) float32 in [-1, 1]."""
        out: Tensor = self.decoder(self._cast(latent))
        return out.float()

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).contiguous(memory_format=self.format)


class _Conv(nn.Module):
    """Convolution of stride 2, its BatchNorm folded in, and LeakyReLU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(F.conv2d(x, self.weight, self.bias, 2, self.padding), SLOPE)


class _Deconv(nn.Module):
    """4x4 deconvolution of stride 2, folded, and what follows it."""

    def __init__(self, layer: nn.ConvTranspose2d, fold: tuple[Tensor, Tensor], end: _End) -> None:
        super().__init__()
        scale, shift = fold
        self.weight = nn.Parameter(layer.weight * scale[:, None, None])
        self.bias = nn.Parameter(shift)
        self.padding, self.extra, self.end = int(layer.padding[0]), int(layer.output_padding[0]), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.conv_transpose2d(x, self.weight, self.bias, 2, self.padding, self.extra))


class _PointDeconv(nn.Module):
    """The same of 1x1 maps: one matrix product with the kernel entries that are used."""

    def __init__(self, layer: nn.ConvTranspose2d, fold: tuple[Tensor, Tensor], end: _End) -> None:
        super().__init__()
        scale, shift = fold
        pad, extra = int(layer.padding[0]), int(layer.output_padding[0])
        self.size, self.end = layer.kernel_size[0] - 2 * pad + extra, end
        used = slice(pad, pad + self.size)
        kernel = (layer.weight * scale[:, None, None])[:, :, used, used]
        self.matrix = nn.Parameter(kernel.permute(2, 3, 1, 0).flatten(0, 2).contiguous())  # (h*w*C', C)
        self.bias = nn.Parameter(shift.repeat(self.size**2))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.linear(x.flatten(1), self.matrix, self.bias)  # already in channels_last order
        return self.end(rows.unflatten(1, (self.size, self.size, -1)).permute(0, 3, 1, 2))


class _OneChannelDeconv(nn.Module):
    """The same with one output channel: four phases of 2x2 taps, interleaved.

    Output row y = 2m + a (before cropping) meets input rows m - 1 and m with kernel rows a + 2 and a.
    """

    def __init__(self, layer: nn.ConvTranspose2d, size_out: int, end: _End) -> None:
        super().__init__()
        taps = layer.weight[:, 0].unflatten(2, (2, 2)).unflatten(1, (2, 2))  # (C, tap, a, tap', b)
        phases = taps.flip(1, 3).permute(2, 4, 0, 1, 3)  # (a, b, C, tap, tap')
        self.weight = nn.Parameter(phases.flatten(0, 1).contiguous())
        self.crop, self.end = slice(int(layer.padding[0]), int(layer.padding[0]) + size_out), end

    def forward(self, x: Tensor) -> Tensor:
        full = F.pixel_shuffle(F.conv2d(x, self.weight, padding=1), 2)
        return self.end(full[:, :, self.crop, self.crop])


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu_(x, SLOPE)


def _folded_encoder(encoder: Encoder) -> list[_Conv]:
    convs = [i for i, layer in enumerate(encoder) if isinstance(layer, nn.Conv2d)]
    blocks = []
    for i in convs:
        conv, after = encoder[i], encoder[i + 1]
        assert isinstance(conv, nn.Conv2d)
        weight, bias = conv.weight.detach(), None
        if isinstance(after, nn.BatchNorm2d):
            scale, bias = _affine(after)
            weight = weight * scale[:, None, None, None]
        blocks.append(_Conv(weight.clone(), bias, int(conv.padding[0])))
    return blocks


def _folded_decoder(model: KECAE) -> nn.Sequential:
    blocks: list[nn.Module] = []
    layers = list(model.decoder)
    deconvs = [i for i, layer in enumerate(layers) if isinstance(layer, nn.ConvTranspose2d)]
    for i, block in zip(deconvs, reversed(model.config.blocks), strict=True):
        layer, after = layers[i], layers[i + 1]
        assert isinstance(layer, nn.ConvTranspose2d)
        if isinstance(after, nn.BatchNorm2d):
            kind = _PointDeconv if block.size_out == 1 else _Deconv
            blocks.append(kind(layer, _affine(after), _leaky))
        else:
            blocks.append(_OneChannelDeconv(layer, block.size_in, torch.tanh_))
    return nn.Sequential(*blocks)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias.detach() - norm.running_mean * scale
