"""The nearest matrix with equal singular values, nearly, by matrix products alone."""

import torch
from torch import Tensor

_FACTORS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Each of [count, rows, columns] with its singular values brought between about 0.7 and 1.2; same dtype.

    Newton-Schulz iteration of fifth order with the factors of Muon (Jordan et al., 2024), which are steep at
    zero rather than exact at one. A matrix of zeros stays one.
    """
    a, b, c = _FACTORS
    norms = torch.linalg.matrix_norm(matrices.float(), keepdim=True)
    x: Tensor = (matrices.float() / (norms + 1e-7)).to(matrices.dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + torch.baddbmm(b * square, square, square, alpha=c) @ x
    return x if wide else x.mT
