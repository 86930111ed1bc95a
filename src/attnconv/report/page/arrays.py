"""Arrays inside the page, packed here and unpacked by arrays.js."""

import base64
import zlib
from typing import Any

import numpy as np

DTYPES = ("float32", "float16", "uint8")


def packed(array: np.ndarray) -> dict[str, Any]:
    """Return {dtype, shape, deflate}: the little-endian bytes, deflated, in base64.

    Raises:
        ValueError: the type is not in DTYPES.
    """
    if array.dtype.name not in DTYPES:
        raise ValueError(f"arrays in the page are {', '.join(DTYPES)}, not {array.dtype}")
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    deflated = base64.b64encode(zlib.compress(content, 9)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "deflate": deflated}
