"""Exact Hamming search over planes of codes: the k nearest rows, and all rows within a radius.

>>> import numpy as np
>>> from distillhash import Codes
>>> codes = Codes.from_signs(np.array([[1, 1, 1], [1, -1, 1], [-1, -1, -1]]))
>>> rows, distances = nearest(planes_of(codes[:1]), planes_of(codes), k=2)
>>> rows.tolist(), distances.tolist()
([[0, 1]], [[0, 1]])
"""

from distillhash.hamming.search import nearest, plane_dtype, planes_of, warm_up, within

__all__ = ["nearest", "plane_dtype", "planes_of", "warm_up", "within"]
