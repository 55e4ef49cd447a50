"""The curvature that kinks add to the expected loss, which no Hessian sees (arXiv 2411.16914)."""
