"""Alice, naively: the published algorithm in float64 numpy on flat vectors, with the signs handed in.

Everything is kept as the algorithm is stated: the look-ahead point itself, the step's length and sign apart, clipping
after division. Nothing here is shared with the package.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Settings:
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    w1: float = 0.0
    w2: float = 0.0
    phi: float | None = None
    omega: float = 1.0
    limit_method: str = "adam"
    lr_min: float = 0.0
    lr_max: float | None = None
    scale_bounds_with_lr: bool = True
    hess_comp: str = "abs"
    grad_glass: bool = True
    quick_steps: int = 3


def is_warm(t: int, beta1: float) -> bool:
    """In float32, as published."""
    return bool(np.float32(t) <= np.float32(1.0) / (np.float32(1.0) - np.float32(beta1)))


def length(g: float, h: float, rho: float, eps: float) -> float:
    """The closed form for one coordinate."""
    a = 0.238732414637843 * rho / (abs(g) + eps)
    return abs(g) / (a + h + math.sqrt(a * (a + 2 * h)) + eps)


class Reference:
    def __init__(self, theta, settings: Settings):
        self.o = settings
        self.mu = np.array(theta, dtype=np.float64)
        self.nu = self.mu.copy()
        self.g = np.zeros_like(self.mu)
        self.R = np.zeros_like(self.mu)
        self.H = np.zeros_like(self.mu)
        self.s = np.zeros_like(self.mu)
        self.t = 0
        self.evaluations = 0
        self.delta = np.zeros_like(self.mu)
        top = 2 * settings.lr if settings.lr_max is None else settings.lr_max
        self.ratios = (settings.lr_min / settings.lr, top / settings.lr)
        self.absolute = (settings.lr_min, top)

    def sampling(self) -> bool:
        t = self.t + 1
        return is_warm(t, self.o.beta1) or t % (self.o.quick_steps + 1) == 0

    def step(self, gradient, z, lr):
        """``gradient(theta)`` on this batch; ``z`` is used on sampling steps only."""
        o = self.o
        sampling = self.sampling()
        self.t += 1
        t, sigma = self.t, lr
        cap = (t - 1) / t
        b1, b2 = min(o.beta1, cap), min(o.beta2, cap)
        b3 = min(1 - (o.quick_steps + 1) * (1 - o.beta2), cap)
        if sampling:
            plus, minus = gradient(self.nu + sigma * z), gradient(self.nu - sigma * z)
            self.evaluations += 2
            h = (plus - minus) / (2 * sigma)
            observed = h * h + o.w2 * o.w2 if o.hess_comp == "rms" else np.abs(h) + o.w2
            self.H = b3 * self.H + (1 - b3) * observed
        zero = gradient(self.nu)
        self.evaluations += 1
        if sampling:
            rho = (2 / sigma) * (0.5 * (plus + minus) - zero) ** 2
            self.R = b3 * self.R + (1 - b3) * rho
        self.s = b2 * self.s + (1 - b2) * zero * zero
        regular = o.w1 * np.where(self.nu < 0, -1.0, 1.0) + o.w2 * self.nu
        self.g = b1 * self.g + (1 - b1) * (zero + regular)
        if is_warm(t, o.beta1):
            return
        low, high = (r * lr for r in self.ratios) if o.scale_bounds_with_lr else self.absolute
        for i in range(self.mu.size):
            g = self.g[i]
            h = {"zero": 0.0, "abs": self.H[i], "rms": math.sqrt(self.H[i])}[o.hess_comp]
            d = length(g, h, self.R[i] if o.grad_glass else 0.0, o.eps)
            unit = {"fixed": 1.0, "sgdm": abs(g), "adam": abs(g) / (math.sqrt(self.s[i]) + o.eps)}[o.limit_method]
            if d < low * unit:
                d = low * unit
            elif not d < high * unit:
                d = high * unit
            self.delta[i] = -d if g > 0 else d if g < 0 else 0.0
        phi = 1 - o.beta1 if o.phi is None else o.phi
        self.nu = self.mu + o.omega * self.delta
        self.mu = self.mu + phi * self.delta


def quadratic(n, seed=0):
    """A dense positive definite quadratic: its gradient, and the matrix and vector it is made of."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n))
    matrix, vector = a @ a.T / n + 0.1 * np.eye(n), rng.standard_normal(n)
    return matrix, vector


def relu_sum(n, terms, seed=0):
    """``sum_k c_k relu(q_k theta - b_k) + |theta|^2/20``: kinks everywhere, and its exact gradient."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((terms, n)), 0.5 * rng.standard_normal(terms), rng.standard_normal(terms) / terms
