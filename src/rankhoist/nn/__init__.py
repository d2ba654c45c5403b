"""Trainable ranking models in plain PyTorch. Nothing here knows of the compiler.

Shape letters: B rows, F fields, D total width of the embedded fields, k width of one field, T entries of a list.
"""

from rankhoist.nn.dcnv2 import CrossNetV2, DCNv2
from rankhoist.nn.deepfm import DeepFM, FactorizationMachine
from rankhoist.nn.embedding import FeatureEmbedding, Field
from rankhoist.nn.mlp import MLP

__all__ = ["MLP", "CrossNetV2", "DCNv2", "DeepFM", "FactorizationMachine", "FeatureEmbedding", "Field"]
