"""Numbers of tensors, looked at with numpy: finite, bounded, zero. Only the checks import this.

bfloat16, which numpy has no type for, is read as 16 bits and widened: it is the upper half of a float32.
"""

import hashlib
import math
import os
from dataclasses import dataclass

import numpy as np

from openmint.adapters.safetensors_header import TensorEntry

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorValues:
    """What the numbers of one tensor are like. `max_abs` and `norm` count finite values only."""

    sha256: str
    not_finite: int
    first_not_finite: int | None
    """Position of the first NaN or infinity, counted in elements."""

    max_abs: float
    norm: float
    """Frobenius norm, summed in float64."""


def read_values(descriptor: int, entry: TensorEntry) -> TensorValues:
    """One pass over a tensor's bytes in chunks, so that memory is bounded whatever its size."""
    digest = hashlib.sha256()
    not_finite, first, max_abs, squares = 0, None, 0.0, 0.0
    position, seen = entry.start, 0
    while position < entry.end:
        raw = os.pread(descriptor, min(CHUNK_BYTES, entry.end - position), position)
        if not raw:
            raise EOFError(f"the file ended inside {entry.name}")
        if len(raw) % 4 and position + len(raw) < entry.end:
            raw = raw[: len(raw) - len(raw) % 4]
        digest.update(raw)
        values = _as_float32(raw, entry.dtype)
        size = values.size
        wide = values.astype(np.float64)
        chunk_squares = float(np.dot(wide, wide))
        if not math.isfinite(chunk_squares):  # the square of a finite float32 is finite in float64
            finite = np.isfinite(values)
            if first is None:
                first = seen + int(np.argmin(finite))
            values = values[finite]
            not_finite += size - values.size
            wide = values.astype(np.float64)
            chunk_squares = float(np.dot(wide, wide))
        if values.size:
            max_abs = max(max_abs, float(values.max()), -float(values.min()))
        squares += chunk_squares
        seen += size
        position += len(raw)
    return TensorValues(digest.hexdigest(), not_finite, first, max_abs, math.sqrt(squares))


def _as_float32(raw: bytes, dtype: str) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    if dtype == "BF16":
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, dtype="<f2").astype(np.float32)
    return np.frombuffer(raw, dtype="<f4")
