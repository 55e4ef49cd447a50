"""Gauss-Newton and Fisher matrices as one reads them in a textbook: whole Jacobians, whole Hessians, no thalweg."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from reference.dense import chosen, flat


def jacobian(model, outputs):
    """Row i is the gradient of the i-th entry of ``outputs(model)``."""
    parameters = chosen(model)
    with sdpa_kernel(SDPBackend.MATH):
        entries = outputs(model).reshape(-1)
        rows = [
            flat(torch.autograd.grad(e, parameters, retain_graph=True, allow_unused=True), parameters) for e in entries
        ]
    return torch.stack(rows).detach()


def gauss_newton(model, outputs, loss):
    """``J' H J`` with all data in one go, and ``loss`` a function of all outputs."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        z = outputs(model)
    size = z.numel()
    inner = torch.autograd.functional.hessian(loss, z).reshape(size, size)
    rows = jacobian(model, outputs)
    return rows.T @ inner @ rows


def empirical_fisher(model, losses, weights=None):
    """``sum_i c_i g_i g_i'`` of the losses of single samples; ``c_i`` sum to one and are equal by default."""
    rows = jacobian(model, losses)
    weights = torch.full((len(rows),), 1.0, dtype=rows.dtype) if weights is None else weights.reshape(-1)
    return rows.T @ (rows * (weights / weights.sum())[:, None])
