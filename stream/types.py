"""Aliases for the NumPy arrays that functions exchange. Shapes are in the docstrings of those functions."""

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.void]  # records of a structured dtype: PROFILE, EVENT, SIGNAL, ...
Row = Any  # one record of such an array in a kernel: numba reads its fields as attributes
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
