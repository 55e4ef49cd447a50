"""Install every extra through the constraints file and check that torch is still the one that was there."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

root = Path(__file__).parent.parent
extras = ",".join(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def torch_version() -> str:
    """Ask a fresh interpreter, so that nothing is cached."""
    code = "import torch; print(torch.__version__)"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


before = torch_version()
install = [sys.executable, "-m", "pip", "install", "-q", "-c", str(root / "constraints.txt"), "-e", f"{root}[{extras}]"]
subprocess.run(install, check=True)
after = torch_version()
names = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
print(f"torch {before} before, {after} after installing [{extras}]")
if before != after:
    sys.exit(f"installing every extra replaced torch {before} by {after}: pin or drop the package that did it")
if "torchvision" in names:
    sys.exit("an extra pulled in torchvision, whose build need not match torch: find out which and drop it")
