"""In which regime a learning rate is: critical constants, phase diagrams, segments of a run (arXiv 2302.12250)."""
