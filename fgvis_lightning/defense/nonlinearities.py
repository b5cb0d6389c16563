"""Tables of gated and exempt nonlinearities, with reasons.

Activations, that is, functions of one neuron's value, are gated (Wagner et al., CVPR 2019, section 3.2: "after each
nonlinearity"). All spellings count: modules, functions, methods, in place or not.

Exempt by design:

- *pooling*: passes on values that were gated at the activations before it.
- *normalization*: in eval mode batch normalization is affine; the others rescale whole groups of neurons.
- *softmax*: weighs neurons against one another; no neuron has its own range. The paper does not gate the final softmax
  either.
- *product* of two tensors that depend on the image, as in squeeze-and-excitation and gated linear units: both factors
  are gated at their source. The product of a tensor with a function of itself is a handwritten activation, and is
  refused.

Every other operation between image and logits must be linear, or the network is refused (see
`fgvis_lightning.defense.graph`).

If a layer would have no gate next to it, the sums of a residual stream, the normalizations and attention are gated as
well.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.grn import GlobalResponseNorm
from timm.models.metaformer import SquaredReLU, StarReLU
from torch import Tensor, nn
from torch.autograd import Function

from fgvis_lightning.errors import InputError, nearest

GATED = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "threshold"),
    *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink"),
    *("clamp", "clip", "clamp_min", "clamp_max"),
    *("sigmoid", "logsigmoid", "tanh", "tanhshrink", "softsign"),
    *("gelu", "silu", "mish", "softplus", "elu", "selu", "celu", "glu"),
)
"""Functions of the gated activations."""

NONNEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"})
"""Activations whose output is never negative: their lower bound, min(0, h(x)) = 0, always holds."""

GATED_MODULES: tuple[type[nn.Module], ...] = (StarReLU, SquaredReLU)
"""Activations implemented as a module: its output is gated, but nothing inside."""

NORMALIZATION = "normalization"
"""Name of a call to one of the following functions or modules."""

NORMALIZATION_FUNCTIONS = ("normalize", "local_response_norm", "rms_norm")
NORMALIZATION_MODULES: tuple[type[nn.Module], ...] = (GlobalResponseNorm,)
"""Normalizations built from operators that would otherwise be gated or refused; each counts as one call."""

OPERATORS = frozenset(
    {"relu", "hardtanh", "sigmoid", "hardsigmoid", "softplus", "hardswish", "leaky_relu", "elu"}
    | {"silu", "gelu", "mish", "tanh", "glu", "log_sigmoid_forward", "hardshrink", "softshrink"}
    | {"threshold", "clamp", "clamp_min", "clamp_max", "_prelu_kernel", "rrelu_with_noise"}
)
"""Operators of gated activations at the dispatcher."""

STEPS = frozenset(
    {"gt", "ge", "lt", "le", "eq", "ne", "heaviside", "signbit", "argmax", "argmin", "bucketize"}
    | {"sign", "sgn", "round", "floor", "ceil", "trunc"}
)
"""Operators without a gradient: autograd treats their results as constants, although they are not."""

CAST = "_to_copy"
"""Operator of conversions; one to integers is a step, too."""

# --- the nodes of autograd's graph, without "Backward" and a number at their end ---

LINEAR = frozenset(
    {"Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm"}
    | {"Addcmul", "Mv", "Addmv", "Dot", "Linear", "MkldnnLinear", "MpsConvolution", "MkldnnConvolution"}
    | {"View", "UnsafeView", "Reshape", "ReshapeAlias", "Permute", "Transpose", "T", "Expand", "Repeat", "Clone"}
    | {"Alias", "Unbind", "Slice", "Split", "SplitWithSizes", "UnsafeSplit", "Select", "Index", "IndexSelect"}
    | {"Gather", "Squeeze", "Unsqueeze", "Stack", "Cat", "Flip", "Roll", "Rot90", "AsStrided", "CopySlices", "Copy"}
    | {"ToCopy", "Diagonal", "Tril", "Triu", "MaskedFill", "Mean", "Sum", "Cumsum", "ConstantPadNd"}
    | {"ReflectionPad1D", "ReflectionPad2D", "ReplicationPad1D", "ReplicationPad2D", "PixelShuffle", "PixelUnshuffle"}
    | {"NativeChannelShuffle", "Im2Col", "Col2Im", "Unfold", "UpsampleNearest2D", "UpsampleNearestExact2D"}
    | {"UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleBicubic2D", "UpsampleBicubic2DAa", "FftR2C", "FftC2R"}
    | {"ReflectionPad3D", "ReplicationPad3D", "UpsampleNearest1D", "UpsampleNearest3D", "UpsampleNearestExact1D"}
    | {"UpsampleNearestExact3D", "UpsampleLinear1D", "UpsampleTrilinear3D", "IndexPut", "FftC2C", "IndexAdd"}
    | {"IndexCopy", "IndexFill", "Scatter", "ScatterAdd", "Zero", "Fill"}
    | {"BackwardHookFunction"}
)

LINEAR_FUNCTIONS = frozenset(
    f"GeneratedBackwardFor_torchvision_{name}_default" for name in ("roi_align", "ps_roi_align")
)
"""Autograd functions that torch generates for torchvision's operators; they are linear for fixed boxes."""

PRODUCTS = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Mv", "Dot", "Convolution", "Linear"), 0),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm", "Addmv", "Addcmul"), 1),
}
"""Operators that are linear in each factor, with the position of the first factor among the inputs."""

EXEMPT = {
    **dict.fromkeys(("MaxPool1D", "MaxPool2D", "MaxPool2DWithIndices", "MaxPool3DWithIndices"), "pooling"),
    **dict.fromkeys(("AdaptiveMaxPool2D", "FractionalMaxPool2D", "MkldnnMaxPool2D", "MpsMaxPool2D"), "pooling"),
    **dict.fromkeys(("AdaptiveMaxPool3D", "FractionalMaxPool3D"), "pooling"),
    **dict.fromkeys(("AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D"), "pooling"),
    **dict.fromkeys(("MkldnnAdaptiveAvgPool2D",), "pooling"),
    **dict.fromkeys(("Amax", "Amin", "Max"), "pooling"),
    **dict.fromkeys(("NativeBatchNorm", "NativeBatchNormLegit", "BatchNormWithUpdate"), "normalization"),
    **dict.fromkeys(("CudnnBatchNorm", "MiopenBatchNorm"), "normalization"),
    **dict.fromkeys(("NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm"), "normalization"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "SafeSoftmax"), "softmax"),
}
"""Operators that are neither linear nor gated, by design. Every ScaledDotProduct… is attention."""

Functions = dict[Callable[..., Any], str]


def spellings(name: str) -> Iterator[Callable[..., Any]]:
    """All torch functions and tensor methods named ``name``, in place or not, including operators."""
    for namespace in (F, torch, torch._C._nn, Tensor, torch.special, torch.linalg, torch._C._VariableFunctions):
        for spelled in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__"):
            function = getattr(namespace, spelled, None)
            if callable(function) and not isinstance(function, type):
                yield function


def table(names: Iterable[str]) -> Functions:
    """Every spelling of every name: ``{F.relu: "relu", torch.relu_: "relu", Tensor.relu: "relu", …}``."""
    return {function: name for name in names for function in spellings(name)}


ACTIVATIONS: Functions = table(GATED)
ACTIVATIONS[torch.special.expit] = "sigmoid"

NORMALIZATIONS: Functions = dict.fromkeys(table(NORMALIZATION_FUNCTIONS), NORMALIZATION)

RESIDUAL = "residual"
"""Name of a sum of two tensors that both depend on the image, also of a sum or mean over a stack of them."""

ATTENTION = "attention"
"""Name of attention, and of a matrix product of two tensors that both depend on the image."""

SUMS = ("add", "sub", "subtract", "rsub", "addcmul", "addcdiv")
REDUCTIONS = ("sum", "mean")
MATRIX_PRODUCTS = ("matmul", "mm", "bmm", "mv", "baddbmm", "addbmm", "addmm", "addmv", "einsum")

STREAM: Functions = {
    **dict.fromkeys(table((*SUMS, *REDUCTIONS)), RESIDUAL),
    **dict.fromkeys(table(["layer_norm", "group_norm", "instance_norm"]), NORMALIZATION),
    **dict.fromkeys(table(["scaled_dot_product_attention", "multi_head_attention_forward"]), ATTENTION),
    **dict.fromkeys(table(MATRIX_PRODUCTS), ATTENTION),
}
"""Functions that are gated, with `NORMALIZATIONS`, if a layer would otherwise have no gate next to it."""

KINDS = frozenset({RESIDUAL, NORMALIZATION, ATTENTION})
"""Names of calls that are gated in a residual stream only."""

JOINING = frozenset({RESIDUAL, ATTENTION})
"""Names of calls that are left alone unless two of their tensors depend on the image."""


def as_entries(entries: Iterable[str | type]) -> tuple[str | type, ...]:
    """A user's list of functions and classes, or a single one of them, as a tuple."""
    return (entries,) if isinstance(entries, str | type) else tuple(entries)


def resolve(entries: Iterable[str | type], option: str) -> tuple[frozenset[str], tuple[type, ...]]:
    """Resolve a user's list of function names and classes.

    Args:
        entries: names of functions in ``torch`` or ``torch.nn.functional``, names of operators from error messages, or
            classes of modules and autograd functions as ``package.module.Class``.
        option: name of the option, for error messages.

    Returns:
        Names, and classes. `KINDS` are valid names.

    Raises:
        InputError: if an entry is none of these.
    """
    names, classes = set(), []
    for entry in entries:
        if isinstance(entry, str) and "." in entry:
            path, _, name = entry.rpartition(".")
            try:
                entry = getattr(importlib.import_module(path), name)
            except (ImportError, AttributeError, ValueError) as error:
                raise InputError(
                    f"Expected {option} to name a class that can be imported, but got {entry!r}: {error}."
                ) from error
        if isinstance(entry, type) and issubclass(entry, nn.Module | Function):
            classes.append(entry)
        elif entry in KINDS or (isinstance(entry, str) and (any(spellings(entry)) or hasattr(torch.ops.aten, entry))):
            names.add(entry)
        else:
            hint = nearest(str(entry), sorted(set(ACTIVATIONS.values())))
            raise InputError(
                f"Expected {option} to name functions of torch, such as 'sigmoid', or classes of modules, such as "
                f"'my_project.layers.Swish', but got {entry!r}.{hint}"
            )
    return frozenset(names), tuple(classes)
