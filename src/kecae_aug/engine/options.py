"""How the network runs inside, as one argument: ``engine=EngineOptions(...)``."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

AMP_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class EngineOptions:
    """Precision, memory and compilation of the network. None of them changes which knees are exchanged.

    Args:
        amp_dtype: of kernels and activations: ``torch.bfloat16`` or ``torch.float16`` for devices that are faster in it;
            None is float32. The loop's own autocast changes nothing.
        channels_last: memory format of the activations; never of what comes out.
        chunk_size: knees that go through the network at once; None for all of a batch.
        compile: pass the network to ``torch.compile`` (needs a C++ compiler on CPUs; the first batch of each size takes
            half a minute). Copies and unpickled ones, on whatever device, are compiled too.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    amp_dtype: torch.dtype | None = None
    channels_last: bool = True
    chunk_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.amp_dtype is not None and self.amp_dtype not in AMP_DTYPES:
            accepted = ", ".join(map(str, AMP_DTYPES))
            raise ValueError(f"amp_dtype={self.amp_dtype}: accepted are {accepted}, or None for float32")
        for name in ("channels_last", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted are True and False")
        size = self.chunk_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"chunk_size={size!r}: accepted is 1 or more, or None")

    @property
    def dtype(self) -> torch.dtype:
        """Of kernels and activations."""
        return self.amp_dtype or torch.float32

    def __repr__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return f"EngineOptions({', '.join(f'{name}={value!r}' for name, value in given)})"


def check_engine(engine: EngineOptions | None) -> EngineOptions:
    """The options given, or the defaults.

    Raises:
        TypeError: something else than EngineOptions.
    """
    if engine is not None and not isinstance(engine, EngineOptions):
        raise TypeError(
            f"engine: got {type(engine).__name__}, accepted is EngineOptions(amp_dtype=, channels_last=, chunk_size=, "
            "compile=), or None for its defaults"
        )
    return engine or EngineOptions()
