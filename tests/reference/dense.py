"""Derivatives of a mean loss as one reads them in a textbook: whole data at once, one entry after the other.

Nothing here calls thalweg. The loss is ``whole(model)`` of the plain module.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def chosen(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(tensors, parameters):
    return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in zip(tensors, parameters)])


def value(model, whole):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return whole(model)


def gradient(model, whole):
    parameters = chosen(model)
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(whole(model), parameters, allow_unused=True)
    return flat(grads, parameters)


def hessian(model, whole):
    """Row i is the gradient of the i-th entry of the gradient."""
    parameters = chosen(model)
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(whole(model), parameters, create_graph=True, allow_unused=True)
        rows = [
            flat(torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True), parameters)
            if entry.requires_grad
            else torch.zeros(sum(p.numel() for p in parameters), dtype=entry.dtype)
            for entry in flat(grads, parameters)
        ]
    return torch.stack(rows).detach()


def hessian_by_differences(model, whole, step=1e-5):
    """Column j is a central difference of gradients: no second derivative is taken, no fused kernel trusted."""
    columns = []
    for parameter in chosen(model):
        for j in range(parameter.numel()):
            entries = parameter.data.view(-1)
            kept = entries[j].item()
            entries[j] = kept + step
            ahead = gradient(model, whole)
            entries[j] = kept - step
            behind = gradient(model, whole)
            entries[j] = kept
            columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, dim=1)
