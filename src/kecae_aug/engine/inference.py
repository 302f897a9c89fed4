"""The same network for inference only: what training needs is folded away, keys and non-keys apart.

``FastKECAE(model)`` gives the outputs of ``model`` in eval mode (float32: to 1e-4) from
- BatchNorm folded into the kernels before it;
- convolutions to, and deconvolutions of, 1x1 maps as one matrix product with a packed kernel;
- deconvolutions as 2x2 convolutions to four times as many channels and a pixel shuffle, since generic ones reach
  a tenth of the machine's speed with one output channel, and half with 32;
- on a CPU, large maps in small groups of images, whose activations stay in reused memory (glibc gives pages of
  more than 32 MB back at once, and touching new ones took longer than the convolutions), small maps in whole
  batches, whose kernels are then read once; elsewhere whole batches throughout;
- channels_last, and half precision where asked for.

benchmarks/kecae_bench/checks/throughput.py measures it against the plain network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kecae_aug.engine.model import KECAE, SLOPE, Encoder, KECAEConfig, Latents, Spread
from kecae_aug.engine.options import EngineOptions, check_engine

_End = Callable[[Tensor], Tensor]
SMALL_MAP = 20  # pixels a side; smaller maps run in whole batches
GROUP_BYTES = 24 * 2**20  # of the largest activation of a group of images


class FastKECAE(nn.Module):
    """Inference copy of a :class:`~kecae_aug.engine.model.KECAE`; no gradients, no training.

    Args:
        model: the model; not changed.
        engine: precision, memory format and compilation; inputs and outputs are float32 in any case. Who calls it splits
            batches into chunks.
    """

    def __init__(self, model: KECAE, engine: EngineOptions | None = None) -> None:
        super().__init__()
        engine = check_engine(engine)
        self.config, self.dtype, self.compiled = model.config, engine.dtype, engine.compile
        self.format = torch.channels_last if engine.channels_last else torch.contiguous_format
        self.key: nn.Module = _folded_encoder(model.key_encoder, model.config.key_branch)
        if isinstance(model.spread, Spread):
            self.key = nn.Sequential(self.key, copy.deepcopy(model.spread))
        self.non_key = _folded_encoder(model.non_key_encoder, model.config)
        self.decoder = _folded_decoder(model)
        self.to(dtype=self.dtype).to(memory_format=self.format).eval().requires_grad_(False)
        self._compile()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._compile()  # nn.Module leaves what it compiled out of copies and pickles

    def _compile(self) -> None:
        if self.compiled:
            for part in (self.key, self.non_key, self.decoder):
                part.compile()

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


class _Staged(nn.Module):
    """Blocks of large maps in groups of images (on a CPU), blocks of small maps in whole batches."""

    def __init__(self, large: list[nn.Module], small: list[nn.Module], group: int, large_first: bool) -> None:
        super().__init__()
        self.large, self.small = nn.Sequential(*large), nn.Sequential(*small)
        self.group, self.large_first = group, large_first

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x if self.large_first else self.small(x)
        if len(self.large):
            size = self.group if out.device.type == "cpu" else max(len(out), 1)
            out = torch.cat([self.large(part) for part in out.split(size)])
        return self.small(out) if self.large_first else out

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Stage by stage: on a CPU groups are of one size, so the large stage is compiled once."""
        self.large.compile(*args, **kwargs)
        self.small.compile(*args, dynamic=True, **kwargs)


class _Conv(nn.Module):
    """Convolution of stride 2, its BatchNorm folded in, and LeakyReLU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(F.conv2d(x, self.weight, self.bias, 2, self.padding), SLOPE)


class _PointConv(nn.Module):
    """The same to 1x1 maps: one matrix product with the kernel entries that meet the map."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, size_in: int) -> None:
        super().__init__()
        # rows of the map that the one window meets; a map of 4 has one too many
        self.met = min(size_in, 3 - padding)
        used = slice(padding, padding + self.met)
        kernel = weight[:, :, used, used].permute(0, 2, 3, 1)  # as channels_last maps lie in memory
        self.matrix = nn.Parameter(kernel.flatten(1).contiguous())
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, :, : self.met, : self.met].permute(0, 2, 3, 1).flatten(1)
        return F.leaky_relu_(F.linear(rows, self.matrix, self.bias), SLOPE)[:, :, None, None]


class _PointDeconv(nn.Module):
    """4x4 deconvolution of stride 2 of 1x1 maps: one matrix product with the kernel entries that are used."""

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


class _ShuffledDeconv(nn.Module):
    """4x4 deconvolution of stride 2 as four phases of 2x2 taps, interleaved.

    Output row y = 2m + a (before cropping) meets input rows m - 1 and m with kernel rows a + 2 and a.
    """

    def __init__(
        self, layer: nn.ConvTranspose2d, fold: tuple[Tensor, Tensor] | None, size_out: int, end: _End
    ) -> None:
        super().__init__()
        weight, bias = layer.weight, None
        if fold is not None:
            weight, bias = weight * fold[0][:, None, None], fold[1].repeat_interleave(4)
        taps = weight.unflatten(3, (2, 2)).unflatten(2, (2, 2))  # (C, C', tap, a, tap', b)
        phases = taps.flip(2, 4).permute(1, 3, 5, 0, 2, 4)  # (C', a, b, C, tap, tap')
        self.weight = nn.Parameter(phases.flatten(0, 2).contiguous())
        self.bias = None if bias is None else nn.Parameter(bias)
        self.crop, self.end = slice(int(layer.padding[0]), int(layer.padding[0]) + size_out), end

    def forward(self, x: Tensor) -> Tensor:
        full = F.pixel_shuffle(self.end(F.conv2d(x, self.weight, self.bias, padding=1)), 2)
        return full[:, :, self.crop, self.crop]


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu_(x, SLOPE)


def _folded_encoder(encoder: Encoder, config: KECAEConfig) -> _Staged:
    layers = list(encoder)
    convs = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    large: list[nn.Module] = []
    small: list[nn.Module] = []
    for i, block in zip(convs, config.blocks, strict=True):
        conv, after = layers[i], layers[i + 1]
        assert isinstance(conv, nn.Conv2d)
        weight, bias = conv.weight.detach().clone(), None
        if isinstance(after, nn.BatchNorm2d):
            scale, bias = _affine(after)
            weight = weight * scale[:, None, None, None]
        folded: nn.Module = _Conv(weight, bias, block.padding)
        if block.size_out == 1:
            folded = _PointConv(weight, bias, block.padding, block.size_in)
        (large if block.size_in > SMALL_MAP else small).append(folded)
    return _Staged(large, small, _group(config), large_first=True)


def _folded_decoder(model: KECAE) -> _Staged:
    layers = list(model.decoder)
    deconvs = [i for i, layer in enumerate(layers) if isinstance(layer, nn.ConvTranspose2d)]
    large: list[nn.Module] = []
    small: list[nn.Module] = []
    for i, block in zip(deconvs, reversed(model.config.blocks), strict=True):
        layer, after = layers[i], layers[i + 1]
        assert isinstance(layer, nn.ConvTranspose2d)
        fold = _affine(after) if isinstance(after, nn.BatchNorm2d) else None
        end = torch.tanh_ if fold is None else _leaky
        folded: nn.Module
        if fold is not None and block.size_out == 1:
            folded = _PointDeconv(layer, fold, end)
        else:
            folded = _ShuffledDeconv(layer, fold, block.size_in, end)
        (large if block.size_in > SMALL_MAP else small).append(folded)
    return _Staged(large, small, _group(model.config), large_first=False)


def _group(config: KECAEConfig) -> int:
    """Images whose largest activation, in float32, fits GROUP_BYTES."""
    sizes = zip(config.blocks, config.channels, strict=True)
    largest = max(4 * channels * block.size_out**2 for block, channels in sizes)
    return max(1, GROUP_BYTES // largest)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias.detach() - norm.running_mean * scale
