"""Estimators of whole spectra as their papers write them: one probe after the other, nothing reused.

Nothing here calls thalweg. Matrices and probes are dense float64.
"""

import numpy as np
import scipy.linalg
import torch


def basis_without(matrix, probes, *left_out):
    """An orthonormal basis of ``A w_j`` over all probes but those left out."""
    kept = [j for j in range(probes.shape[1]) if j not in left_out]
    return torch.linalg.qr(matrix @ probes[:, kept])[0]


def xtrace(matrix, probes, of=None):
    """Mean over probes of ``tr Q'BQ + (P - k + 1) r'Br / r'r``, ``r`` the probe outside the span Q of the others.

    B is A, unless another matrix is given.
    """
    of, (size, k), found = matrix if of is None else of, probes.shape, []
    for i in range(k):
        q = basis_without(matrix, probes, i)
        rest = probes[:, i] - q @ (q.T @ probes[:, i])
        found.append(torch.trace(q.T @ of @ q) + (size - k + 1) * (rest @ of @ rest) / (rest @ rest))
    return torch.stack(found).mean()


def hutchplusplus(matrix, basis_probes, probes):
    """``tr Q'AQ`` plus the mean of ``(P - k) r'Ar / r'r`` over probes outside the span Q of ``A`` times others."""
    q = torch.linalg.qr(matrix @ basis_probes)[0]
    rest = probes - q @ (q.T @ probes)
    ratios = torch.einsum("pi,pq,qi->i", rest, matrix, rest) / rest.square().sum(0)
    return torch.trace(q.T @ matrix @ q) + (len(matrix) - q.shape[1]) * ratios.mean()


def xdiag(matrix, probes):
    """Mean and standard error of the leave-one-out diagonals; the error by leaving two out, pair by pair."""
    k = probes.shape[1]

    def one(i, *more):
        q = basis_without(matrix, probes, i, *more)
        image = matrix @ probes[:, i]
        return (q @ (q.T @ matrix)).diagonal() + probes[:, i] * (image - q @ (q.T @ image))

    single = torch.stack([one(i) for i in range(k)])
    covariance = torch.zeros(len(matrix), dtype=matrix.dtype)
    for i in range(k):
        for j in range(k):
            if i != j:
                covariance += (single[i] - one(i, j)) * (single[j] - one(j, i)) / (k * (k - 1))
    return single.mean(0), (single.var(0) / k + covariance.clamp_min(0)).sqrt()


def lanczos_quadrature(matrix, start, steps):
    """Nodes and weights for ``v'f(A)v / v'v`` by the three-term recurrence, each vector cleaned against all before."""
    vectors, alphas, betas = [start / start.norm()], [], []
    for _ in range(steps):
        image = matrix @ vectors[-1]
        alphas.append(float(image @ vectors[-1]))
        for _ in range(2):
            for v in vectors:
                image = image - (image @ v) * v
        beta = float(image.norm())
        if len(alphas) == steps or beta < 1e-12:
            break
        betas.append(beta)
        vectors.append(image / beta)
    nodes, ritz = scipy.linalg.eigh_tridiagonal(np.array(alphas), np.array(betas))
    return nodes, ritz[0] ** 2
