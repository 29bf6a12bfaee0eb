"""Models: flax.linen modules, and their form as pure functions."""

from isjax.models.heads import CosineHead
from isjax.models.linen import init, make_apply_fn
from isjax.models.mlp import MLP
from isjax.models.resnet import ResNet

# Every class takes `num_classes`; its other fields have defaults.
MODELS = {'mlp': MLP, 'resnet': ResNet}

__all__ = ['MODELS', 'CosineHead', 'MLP', 'ResNet', 'init', 'make_apply_fn']
