"""The parts of a training step, made from their settings.

A part's settings are a dict: its name in a registry and its options. An option
that the part does not have is an error that lists those it has.
"""

from collections.abc import Callable, Collection
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import on_mesh
from experiments.schedules import SCHEDULES
from experiments.settings import SettingsError, choose, options
import isjax
from isjax import losses, transforms, weights
from isjax.baselines import BASELINES
from isjax.data import Metadata, augment, rescale, standardise
from isjax.models import MODELS
from isjax.models.freezing import train_only
from isjax.samplers import SAMPLERS, importance_ranks
from isjax.sharding import Shards
from isjax.step import TRAINING_COST
from isjax.types import Batch

OPTIMIZERS = {
  'sgd': optax.sgd,
  'rmsprop': optax.rmsprop,
  'adam': optax.adam,
}
# name -> (factory, its parameter, the value of it that changes nothing).
ROBUST = {
  'absgd': (transforms.scale_by_absgd, 'temperature', math.inf),
  'chi_square': (transforms.scale_by_chi_square, 'temperature', math.inf),
  'cvar': (transforms.scale_by_cvar, 'share', 1.0),
}
AUGMENTATIONS = {
  'cutout': augment.cutout,
  'flip': augment.flip,
  'pad_and_crop': augment.pad_and_crop,
  'shift': augment.shift,
}
_OF_EVERY_OPTIMIZER = (
  'name',
  'learning_rate',
  'schedule',
  'weight_decay',
  'clip_norm',
)
CLASS_WEIGHTS = ('inverse_frequency', 'inverse_sqrt', 'effective_number')


def preprocess(
  train_set: Batch, metadata: Metadata
) -> Callable[[jax.Array], jax.Array]:
  """Scales images; standardises features by the training set's moments."""
  if metadata.num_tokens is not None:
    return lambda tokens: tokens
  if metadata.max_value is None:
    return standardise(train_set.inputs)
  return rescale(metadata.max_value)


def augmentation(
  settings: dict[str, Any],
) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
  """Returns `augment` and `augment_by` of the training step.

  Those of AUGMENTATIONS in config['augmentations'], name -> options, are made
  one after the other; one of CHOICES there has a say in which views of them are
  made of which example.

  Raises:
    SettingsError: for a name or an option that there is not, or a bad value.
  """
  parts, choices = [], []
  for name, fields in settings.items():
    factory = choose(AUGMENTATIONS | CHOICES, name, 'augmentations')
    if name in CHOICES:
      choices.append((factory, name, fields))
    else:
      parts.append(_make(factory, name, fields))
  if len(choices) > 1:
    raise SettingsError(
      f'augmentations may have one of {", ".join(CHOICES)}; got more.'
    )
  if not parts:
    return None, None
  composed = augment.compose(*parts)
  return _make(*choices[0], composed) if choices else (composed, None)


def _limit_views(augment_fn: augment.AugmentFn, num_views: int):
  """So many views of each example."""
  return augment.limit_views(augment_fn, num_views), lambda _, indices: indices


def _sometimes(augment_fn: augment.AugmentFn, chance: float | str):
  """With the same chance for all, or by the rank of their importance."""

  def of_all(_, indices):
    return jnp.full(indices.shape, chance, jnp.float32)

  if isinstance(chance, str):
    by = choose(_CHANCES, chance, 'augmentations: chance')
    return augment.sometimes(augment_fn), by
  if not 0 <= chance <= 1:
    raise ValueError(f'chance must be in [0, 1]; got {chance}.')
  return augment.sometimes(augment_fn), of_all


_CHANCES = {
  'rank': importance_ranks,
  'reverse_rank': lambda *args: 1 - importance_ranks(*args),
}
CHOICES = {'limit_views': _limit_views, 'sometimes': _sometimes}


def model(settings: dict[str, Any], metadata: Metadata):
  """Returns the flax module of config['model'].

  Raises:
    SettingsError: for a name or an option that there is not.
  """
  factory = choose(MODELS, settings['name'], 'model.name')
  fields = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in options(settings).items()
  }
  fields['num_classes'] = metadata.num_classes
  return _make(factory, 'model', fields, flax=True)


def loss_fn(settings: dict[str, Any], metadata: Metadata) -> losses.LossFn:
  """Returns the loss of config['loss'], made for the training set's classes.

  Raises:
    SettingsError: for a name or an option that there is not, or a bad value.
  """
  factory = choose(losses.LOSSES, settings['name'], 'loss.name')
  fields = options(settings)
  if 'class_counts' in inspect.signature(factory).parameters:
    fields['class_counts'] = np.asarray(metadata.class_counts)
  return _make(factory, 'loss', fields)


def sampler(
  settings: dict[str, Any],
  train_set: Batch,
  budget: int,
  shards: Shards | None = None,
  form: str = 'none',
) -> isjax.Sampler:
  """Returns the sampler of config['sampler'], made for the training set.

  A baseline that anneals over the last steps of a run gets their number from
  the budget; see `anneals`. On a mesh there is one for all devices, or one on
  each of them; see `on_mesh`.

  Raises:
    SettingsError: for a name or an option that there is not, or a bad value.
  """
  factory = choose(SAMPLERS | BASELINES, settings['name'], 'sampler.name')
  fields = {k: _number(v) for k, v in options(settings).items()}
  parameters = inspect.signature(factory).parameters
  if train_set.record_weights is not None:
    fields['record_weights'] = train_set.record_weights
  if 'labels' in parameters:
    fields['labels'] = train_set.targets
  if anneals(settings):
    cost = TRAINING_COST * fields['batch_size']
    fields['num_steps'] = math.ceil(budget / cost)
  size = isjax.num_examples(train_set)
  if shards is None:
    return _make(factory, 'sampler', fields, size)

  def make(num_examples, **fields):
    return _make(factory, 'sampler', fields, num_examples)

  return on_mesh.sampler(make, fields, size, form, shards)


def anneals(settings: dict[str, Any]) -> bool:
  """Whether the sampler of config['sampler'] is made for one budget only."""
  factory = choose(SAMPLERS | BASELINES, settings['name'], 'sampler.name')
  return 'num_steps' in inspect.signature(factory).parameters


def transform(
  config: dict[str, Any], learning_rate: float | jax.Array, metadata: Metadata
) -> optax.GradientTransformationExtraArgs:
  """Returns the chain from per-example gradients to the update.

  Importance weights with config['exponent'], config['class_weights'],
  config['robust'], the average, config['optimizer'], of the parameters whose
  paths begin as one of config['train_only'] if it names any.

  Args:
    config: of the run.
    learning_rate: in place of config['optimizer']['learning_rate'].
    metadata: of the training set.

  Raises:
    SettingsError: for a name or an option that there is not, or a bad value.
  """
  optimizer = _optimizer(config['optimizer'], learning_rate)
  if config['train_only']:
    optimizer = train_only(optimizer, config['train_only'])
  return optax.chain(
    transforms.scale_by_importance(
      metadata.num_examples, exponent=float(config['exponent'])
    ),
    *_class_weights(config['class_weights'], metadata),
    *_robust(config['robust']),
    transforms.average_gradient(),
    optimizer,
  )


def _class_weights(settings: dict[str, Any], metadata: Metadata):
  """Deferred until the share `start` of the budget is spent."""
  kind = settings['name']
  _expect_one_of((*CLASS_WEIGHTS, 'none'), kind, 'class_weights.name')
  if kind == 'none':
    return
  counts = np.asarray(metadata.class_counts)
  labels = np.repeat(np.arange(len(counts)), counts)
  by_class = weights.class_weights(labels, len(counts), kind=kind)
  # A mean weight of 1 over the examples leaves the learning rate alone.
  by_class = by_class / jnp.mean(by_class[labels])
  schedule = losses.deferred(by_class, settings['start'])
  yield transforms.by_progress(
    lambda progress: transforms.scale_by_class(schedule(progress))
  )


def _robust(settings: dict[str, Any]):
  """Deferred until the share `start` of the budget is spent."""
  if settings['name'] == 'none':
    return
  factory, parameter, without = choose(ROBUST, settings['name'], 'robust.name')
  fields = options(settings)
  start = fields.pop('start', 0.0)
  if parameter not in fields:
    raise SettingsError(f'robust.{parameter} is missing.')
  _make(factory, 'robust', fields)

  def at(progress):
    now = jnp.where(progress >= start, fields[parameter], without)
    return factory(**fields | {parameter: now})

  yield transforms.by_progress(at)


def _optimizer(settings: dict[str, Any], learning_rate):
  factory = choose(OPTIMIZERS, settings['name'], 'optimizer.name')
  schedule = settings['schedule']
  schedule = _make(
    choose(SCHEDULES, schedule['name'], 'optimizer.schedule.name'),
    'optimizer.schedule',
    options(schedule),
  )
  fields = {k: v for k, v in settings.items() if k not in _OF_EVERY_OPTIMIZER}
  clip = optax.identity()
  if 'clip_norm' in settings:
    clip = optax.clip_by_global_norm(settings['clip_norm'])
  return optax.chain(
    clip,
    # In the loss the importance weights would multiply it.
    optax.add_decayed_weights(settings.get('weight_decay', 0.0)),
    _make(factory, 'optimizer', fields, learning_rate),
    transforms.scale_by_progress(schedule),
  )


def _make(
  factory: Callable[..., Any],
  field: str,
  fields: dict[str, Any],
  *args: Any,
  flax: bool = False,
):
  """Returns factory(*args, **fields); what is wrong names the field."""
  known = inspect.signature(factory).parameters
  known = [k for k in known if not (flax and k in ('parent', 'name'))]
  for name in fields:
    if name not in known:
      raise SettingsError(
        f'{field}.{name} is no option of {factory.__name__}; those are '
        f'{", ".join(known)}.'
      )
  try:
    return factory(*args, **fields)
  except ValueError as error:
    raise SettingsError(f'{field}: {error}') from error


def _expect_one_of(names: Collection[str], name: str, field: str) -> None:
  choose(dict.fromkeys(names), name, field)


def _number(value: Any) -> Any:
  """'1.5' as 1.5, for a field whose default is a word; words stay words."""
  if isinstance(value, str):
    try:
      return float(value)
    except ValueError:
      return value
  return value
