"""Building blocks of scale-equivariant graph metanetworks."""

from scalegmn_opt.nn.encoding import group_encodings, kernel_positions
from scalegmn_opt.nn.linear import StreamLinear
from scalegmn_opt.nn.message import EdgeProducts, EdgeUpdate, Message, NodeUpdate
from scalegmn_opt.nn.scale import ReScaleEq, ScaleEq, ScaleInv, StreamNorm

__all__ = [
    "EdgeProducts",
    "EdgeUpdate",
    "Message",
    "NodeUpdate",
    "ReScaleEq",
    "ScaleEq",
    "ScaleInv",
    "StreamLinear",
    "StreamNorm",
    "group_encodings",
    "kernel_positions",
]
