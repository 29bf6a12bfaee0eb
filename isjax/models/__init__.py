"""Models: flax.linen modules, and their form as pure functions."""

from isjax.models.bottleneck import BottleneckResNet
from isjax.models.cifar_resnet import CifarResNet
from isjax.models.cnn import CNN
from isjax.models.freezing import train_only
from isjax.models.heads import CosineHead
from isjax.models.linen import init, make_apply_fn
from isjax.models.lstm import LSTM
from isjax.models.mlp import MLP
from isjax.models.resnet import ResNet, wide_resnet
from isjax.models.transformer import Transformer

# Each takes `num_classes`; its other fields have defaults. All but the
# transformer, which takes tokens, take images.
MODELS = {
  'cifar_resnet': CifarResNet,
  'cnn': CNN,
  'lstm': LSTM,
  'mlp': MLP,
  'resnet': ResNet,
  'resnet50': BottleneckResNet,
  'transformer': Transformer,
  'wide_resnet': wide_resnet,
}

__all__ = [
  'CNN',
  'LSTM',
  'MLP',
  'MODELS',
  'BottleneckResNet',
  'CifarResNet',
  'CosineHead',
  'ResNet',
  'Transformer',
  'init',
  'make_apply_fn',
  'train_only',
  'wide_resnet',
]
