"""Models with depth, width, parametrisation and initialisation scale as arguments."""

from thalweg.problem.zoo.build import ModelConfig as ModelConfig
from thalweg.problem.zoo.build import build_model as build_model
from thalweg.problem.zoo.cnn import CNN as CNN
from thalweg.problem.zoo.mlp import MLP as MLP
from thalweg.problem.zoo.resnet import ResNet as ResNet
from thalweg.problem.zoo.transformer import CausalTransformer as CausalTransformer
from thalweg.problem.zoo.transformer import ViT as ViT

__all__ = ["CNN", "MLP", "CausalTransformer", "ModelConfig", "ResNet", "ViT", "build_model"]
