"""Trainable ranking models in plain PyTorch. Nothing here knows of the compiler.

Shape letters: B rows, F fields, D total width of the embedded fields, k width of one field, T entries of a list.
Layers that tell context from candidate: R requests, N candidates; T then is the candidate's width, or its tokens, and
C that of the context (`rankhoist.nn.rows`).
"""

from rankhoist.nn.attention import RankAwareAttention
from rankhoist.nn.dcnv2 import CrossNetV2, DCNv2
from rankhoist.nn.deepfm import DeepFM, FactorizationMachine
from rankhoist.nn.dlrm import DLRM, DotPairs
from rankhoist.nn.embedding import FeatureEmbedding, Field
from rankhoist.nn.mlp import MLP
from rankhoist.nn.rdcn import RDCN
from rankhoist.nn.split_linear import RankSplitLinear

__all__ = [
    "DLRM",
    "MLP",
    "RDCN",
    "CrossNetV2",
    "DCNv2",
    "DeepFM",
    "DotPairs",
    "FactorizationMachine",
    "FeatureEmbedding",
    "Field",
    "RankAwareAttention",
    "RankSplitLinear",
]
