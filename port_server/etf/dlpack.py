"""Tensors of other libraries by DLPack, read through ctypes: it needs no numpy, and has bfloat16.

The layout of the structures is that of DLPack 1.0 and of its older, unversioned form
(https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_KINDS: Final = {0: "i", 1: "u", 2: "f", 4: "bf", 5: "c", 6: "b"}
# Devices whose memory the CPU reads: its own, and host memory pinned for CUDA or ROCm.
_READABLE: Final = frozenset((1, 3, 11))
_DEVICES: Final = {2: "CUDA", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


# The tensor of DLPack 1.0 stands behind its version, two pointers and its flags.
_TENSOR_AT: Final = {b"dltensor": 0, b"dltensor_versioned": 32}

_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype = ctypes.c_char_p
_name_of.argtypes = (ctypes.py_object,)
_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype = c_void_p
_pointer_in.argtypes = (ctypes.py_object, ctypes.c_char_p)


def memory(address: int, size: int, owner: object) -> memoryview:
    """Give a view of memory that `owner` keeps as long as the view lives."""
    if size == 0:
        return memoryview(b"")
    chars: Any = (ctypes.c_char * size).from_address(address)
    chars.owner = owner
    return memoryview(chars).cast("B")


def read(value: Any) -> tuple[str, tuple[int, ...], memoryview]:
    """Give kind and bytes of an item ("f8"), the shape, and the data in C order.

    Raises:
        ValueError: it is on another device, or its items are of an unknown kind.
        Exception: of the library of the tensor.
    """
    device, number = value.__dlpack_device__()
    if device not in _READABLE:
        name = _DEVICES.get(int(device), f"type {int(device)}")
        raise ValueError(
            f"its memory is on the device {name}:{number}; copy it to the CPU first, as "
            f"tensor.cpu() does"
        )
    # Never renamed to a used one, so the capsule itself frees the tensor, after the view.
    try:
        capsule = value.__dlpack__(max_version=(1, 0))
    except TypeError as error:
        if "keyword" not in str(error):
            raise
        # Older than 1.0.
        capsule = value.__dlpack__()
    name = _name_of(capsule)
    tensor = _Tensor.from_address(_pointer_in(capsule, name) + _TENSOR_AT[name])
    kind, bits = _KINDS.get(tensor.code), tensor.bits
    if kind is None or bits % 8 or tensor.lanes != 1:
        raise ValueError(f"DLPack's type {tensor.code} of {bits} bits is not supported")
    size = bits // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    code = f"{kind}{size}"
    if not tensor.strides or _in_c_order(shape, tensor.strides):
        return code, shape, memory(address, math.prod(shape) * size, capsule)
    strides = tuple(stride * size for stride in tensor.strides[: tensor.ndim])
    return code, shape, _compact(address, size, shape, strides, capsule)


def _in_c_order(shape: tuple[int, ...], strides: Any) -> bool:
    expected = 1
    for axis in range(len(shape) - 1, -1, -1):
        if shape[axis] != 1 and strides[axis] != expected:
            return 0 in shape
        expected *= shape[axis]
    return True


def _compact(
    address: int, size: int, shape: tuple[int, ...], strides: tuple[int, ...], owner: object
) -> memoryview:
    try:
        import numpy as np
    except ImportError:
        raise ValueError("it is not contiguous, and numpy is not installed") from None
    first: Any = np.ndarray((1,), f"V{size}", memory(address, size, owner))
    spread: Any = np.lib.stride_tricks.as_strided(first, shape, strides)
    return memoryview(spread.copy(order="C").reshape(-1).view("u1"))
