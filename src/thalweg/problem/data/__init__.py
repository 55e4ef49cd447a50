"""Data: embedded, generated, from local files in public formats, or through ``datasets``."""

from thalweg.problem.data.base import Data as Data
from thalweg.problem.data.load import DataConfig as DataConfig
from thalweg.problem.data.load import load_data as load_data
from thalweg.problem.data.load import loss_for as loss_for

__all__ = ["Data", "DataConfig", "load_data", "loss_for"]
