"""Where training has settled on a measure, the gradient pays for the curvature: a quadratic where both are known.

L = h.w^2 / 2, stochastic gradient g = h w + noise, update v, w' = w - eta v. In the invariant regime L does not change
on average, so to second order, which is exact here,

    E <grad L, v> = (eta / 2) E [v' H v],          and without momentum    E |grad L|^2 = (eta / 2) E [g' H g].

The factor is one half. With momentum v is the momentum buffer, and the second form fails by a factor of several. With
decay v holds the decay term and <., .> the gradient of L alone, or both with it. (arXiv 2110.06256, heuristic 10; the
factor is derived here.)

python examples/noisy_quadratic.py
"""

import numpy as np

CURVATURES = np.array([0.2, 0.5, 1.0, 2.0, 4.0])
NOISE = np.array([2.0, 1.0, 1.0, 0.5, 1.0])


def ratios(
    rate: float, momentum: float = 0.0, decay: float = 0.0, *, chains: int = 1000, steps: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Run many chains from rest, let them forget it, and compare both sides over the second half.

    Returns "update", (eta/2) E[v'Hv] / E<grad, v>; "plain", (eta/2) E[g'Hg] / E|grad|^2; "gradient", E|grad|^2, with
    "expected", its exact value.
    """
    rng = np.random.default_rng(seed)
    weights, velocity = np.zeros((chains, len(CURVATURES))), np.zeros((chains, len(CURVATURES)))
    sums = np.zeros(4)
    for step in range(steps):
        gradient = CURVATURES * weights
        noisy = gradient + NOISE * rng.standard_normal(weights.shape)
        velocity = momentum * velocity + noisy + decay * weights
        if step >= steps // 2:
            sums += [
                (gradient * velocity).sum(),
                (CURVATURES * velocity**2).sum(),
                (gradient**2).sum(),
                (CURVATURES * noisy**2).sum(),
            ]
        weights = weights - rate * velocity
    paid, curved, square, plain = sums / (chains * (steps - steps // 2))
    # every mode is an AR(2) process, of variance eta s^2 (1 + mu) / (h' (1 - mu) (2 (1 + mu) - eta h')), h' with decay
    stiff = CURVATURES + decay
    spread = rate * NOISE**2 * (1 + momentum) / (stiff * (1 - momentum) * (2 * (1 + momentum) - rate * stiff))
    return {
        "update": rate / 2 * curved / paid,
        "plain": rate / 2 * plain / square,
        "gradient": square,
        "expected": float((CURVATURES**2 * spread).sum()),
    }


def main() -> dict[str, dict[str, float]]:
    cases = {
        "rate 0.1": (0.1,),
        "rate 0.3": (0.3,),
        "rate 0.1, decay 0.1": (0.1, 0.0, 0.1),
        "rate 0.02, momentum 0.9": (0.02, 0.9),
    }
    found = {}
    print(
        "in the invariant regime          (eta/2) E v'Hv / E<grad, v>   (eta/2) E g'Hg / E|grad|^2   E|grad|^2   exact"
    )
    for name, settings in cases.items():
        found[name] = row = ratios(*settings)
        print(f"{name:<33}{row['update']:<30.4f}{row['plain']:<29.4f}{row['gradient']:<12.4g}{row['expected']:.4g}")
    return found


if __name__ == "__main__":
    main()
