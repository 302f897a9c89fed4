"""Tensors that say they are on CUDA and compute on the CPU, and note what would make the CPU wait for a GPU."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
WAITS = {  # their result, or its size, is known when the device is done
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}


class PretendCuda(torch.Tensor):
    """Wraps a CPU tensor. To torch's C++ it is on the CPU, since a guard of a GPU's device would want the GPU."""

    __slots__ = ("inner",)  # not in __dict__, which a transform copies to what it returns
    device = CUDA
    is_cuda = True

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="cpu"
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"PretendCuda({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function}: outside pretend()")


class Watch(TorchDispatchMode):
    """Runs what meets a pretended tensor on the CPU; ``waits`` are the operations that a GPU would hold the CPU up with."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        inside = any(isinstance(value, PretendCuda) for value in flat)
        wanted = kwargs.get("device")
        if not inside and (wanted is None or torch.device(wanted).type != "cuda"):
            return function(*args, **kwargs)
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        if function is aten._to_copy.default:
            if not inside and not kwargs.get("non_blocking"):
                self.waits.append(f"copy of {tuple(args[0].shape)} to CUDA")
        elif function in WAITS:
            self.waits.append(str(function))
        elif function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            for index in args[1]:
                if index is not None and (index.dtype == torch.bool or not isinstance(index, PretendCuda)):
                    self.waits.append(f"{function} by {index.dtype} on {index.device}")
        elif inside and any(t.ndim and not isinstance(t, PretendCuda) for t in tensors):
            raise RuntimeError(f"{function}: tensors on cuda and on the CPU")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        plain = tree_map(lambda v: v.inner if isinstance(v, PretendCuda) else v, (args, kwargs))
        out = function(*plain[0], **plain[1])
        if isinstance(out, torch.Tensor) and any(out is v for v in torch.utils._pytree.tree_leaves(plain)):
            return next(v for v in flat if isinstance(v, PretendCuda) and v.inner is out)  # in place
        return tree_map(lambda v: PretendCuda(v) if isinstance(v, torch.Tensor) else v, out)


class Network:
    """A FastKECAE that takes pretended tensors."""

    def __init__(self, fast):
        self.fast, self.device = fast, CUDA

    def __getattr__(self, name):
        run = getattr(self.fast, name)
        return lambda x: PretendCuda(run(x.inner))


@contextlib.contextmanager
def pretend():
    """CUDA is there for the block, as far as single operations can tell; gives the :class:`Watch`."""
    with contextlib.ExitStack() as patches:
        watch = patches.enter_context(Watch())

        def to(tensor, *args, own=torch.Tensor.to, **kwargs):
            device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
            if not isinstance(tensor, PretendCuda) or device is None or device.type == "cuda":
                return own(tensor, *args, **kwargs)
            watch.waits.append(f"copy of {tuple(tensor.shape)} from CUDA")
            return tensor.inner.to(dtype or tensor.dtype)

        def on_cpu(tensor):
            return to(tensor, "cpu") if isinstance(tensor, PretendCuda) else tensor

        for name in ("cpu", "tolist", "item", "__int__", "__float__", "__bool__", "__index__"):
            own = getattr(torch.Tensor, name)
            patches.enter_context(mock.patch.object(torch.Tensor, name, lambda t, own=own: own(on_cpu(t))))
        as_subclass = torch.Tensor.as_subclass
        for owner, name, new in (
            (torch.Tensor, "to", to),
            (
                torch.Tensor,
                "as_subclass",
                lambda t, c: t if isinstance(t, PretendCuda) else as_subclass(t, c),
            ),
            (torch.Tensor, "pin_memory", lambda t: t),
            (torch.Tensor, "is_pinned", lambda t: not isinstance(t, PretendCuda)),
            (torch.cuda, "_lazy_init", lambda: None),
        ):
            patches.enter_context(mock.patch.object(owner, name, new))
        yield watch
