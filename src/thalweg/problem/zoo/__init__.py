"""Models with depth, width, parametrisation and initialisation scale as arguments."""

from thalweg.problem.zoo.build import ModelConfig as ModelConfig
from thalweg.problem.zoo.build import build_model as build_model
from thalweg.problem.zoo.images import CNN as CNN
from thalweg.problem.zoo.images import MLP as MLP
from thalweg.problem.zoo.images import ResNet as ResNet
from thalweg.problem.zoo.transformers import CausalTransformer as CausalTransformer
from thalweg.problem.zoo.transformers import ViT as ViT

__all__ = ["CNN", "MLP", "CausalTransformer", "ModelConfig", "ResNet", "ViT", "build_model"]
