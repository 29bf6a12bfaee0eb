"""What the law is like that a short window of training freezes.

A network is trained through the window of `early_importance`, once per seed,
and what the window has shown of the examples gives the law of every score. How
much of the law falls on rare classes and on wrong labels is compared with their
shares of the examples; how alike the scores of two networks are, with how alike
they are for one network under two seeds.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments import components
from experiments.settings import SettingsError, choose, options
from experiments.studies import early_law_figures, early_law_report
from experiments.studies.study import (
  Report,
  Study,
  UnavailableError,
  are_integers,
  expect,
)
from experiments.studies.training import loss_fn, score
import isjax
from isjax import metrics
from isjax.data import Metadata, load, long_tail, rescale, symmetric_noise
from isjax.data.changes import keep
from isjax.models import init, make_apply_fn
from isjax.samplers import early_importance

# One sampler of each gathers all that the laws are made of.
_WATCHED = ('focal', 'el2n', 'forgetting')
_STATISTICS = {
  'label_probability': metrics.label_probability,
  'error': metrics.error,
}
_CONFIDENCE = 0.95


def laws(probability: Any, el2n: Any, forgetting: Any) -> dict[str, np.ndarray]:
  """Returns the law of each score, f64[N], as `early_importance` freezes it.

  That is the sampler with mix = 0. Under any other mix an example has the
  chance (1 - mix) p_i + mix / N.

  Args:
    probability: its Moments of the label's probability, every example visited.
    el2n: its Moments of the logit-gradient norm.
    forgetting: its Forgetting.
  """
  visits, mean, squares, el2n, events = (
    np.asarray(values, np.float64)
    for values in (*probability, el2n.mean, forgetting.events)
  )
  scores = {
    'uniform': np.ones_like(mean),
    'focal': 1 - mean,
    'focal, squared': np.square(1 - mean),
    'confusion': mean * (1 - mean),
    'std': np.sqrt(squares / visits),
    'el2n': el2n,
    'forgetting': events,
  }
  return {name: _law(np.maximum(s, 0)) for name, s in scores.items()}


def _law(scores: np.ndarray) -> np.ndarray:
  """Proportional to the scores; uniform where all are 0."""
  total = scores.sum()
  return scores / total if total > 0 else np.full(len(scores), 1 / len(scores))


def effective_classes(class_mass: np.ndarray) -> float:
  """Returns exp of the entropy of a law over classes f64[K], in [1, K]."""
  present = class_mass[class_mass > 0]
  return float(np.exp(-present @ np.log(present)))


class Agreement(NamedTuple):
  """How alike two networks rank the examples, against what seeds allow.

  correlation: Spearman's, mean over all pairs of different seeds ...
  spread:      ... and its standard deviation over these pairs.
  ceiling:     geometric mean of the two networks' correlations with
               themselves under another seed: what the correlation would be if
               they differed by noise alone.
  difference:  correlation - ceiling ...
  low, high:   ... and its 95 % interval, by leaving out one seed after the
               other.
  """

  correlation: float
  spread: float
  ceiling: float
  difference: float
  low: float
  high: float


def agreement(correlations: np.ndarray, first: int, second: int) -> Agreement:
  """Compares two networks, or one with itself.

  Args:
    correlations: f64[A, S, A, S], of networks A under seeds S >= 3, each with
      each.
    first: one of the networks.
    second: the other one; if it is the first, it is its own ceiling.
  """
  num_seeds = correlations.shape[1]

  def between(a, b, seeds):
    pairs = list(itertools.permutations(seeds, 2))
    return np.array([correlations[a, s, b, t] for s, t in pairs])

  def difference(seeds):
    own = [max(between(a, a, seeds).mean(), 0.0) for a in (first, second)]
    ceiling = math.sqrt(own[0] * own[1])
    return between(first, second, seeds).mean() - ceiling, ceiling

  everyone = range(num_seeds)
  values = between(first, second, everyone)
  gap, ceiling = difference(everyone)
  left_out = [
    difference([s for s in everyone if s != out])[0] for out in everyone
  ]
  error = math.sqrt((num_seeds - 1) * np.var(left_out))
  reach = error * stats.t.ppf((1 + _CONFIDENCE) / 2, num_seeds - 1)
  return Agreement(
    correlation=float(values.mean()),
    spread=float(values.std(ddof=1)),
    ceiling=ceiling,
    difference=float(gap),
    low=float(gap - reach),
    high=float(gap + reach),
  )


def _check(config: dict[str, Any]) -> None:
  problem = choose(config['problems'], config['problem'], 'problem')
  for field, requirement, holds in (
    ('batch_size', 'at least 1', lambda b: b >= 1),
    ('num_seeds', 'at least 3', lambda n: are_integers([n], 3)),
    ('factors', 'numbers in (0, 1]', _are_factors),
    ('shares', 'numbers in [0, 1]', _are_shares),
  ):
    expect(config, field, requirement, holds)
  expect(problem, 'block', 'at least 1', lambda block: block >= 1)
  expect(problem, 'warmup_epochs', 'at least 1', lambda epochs: epochs >= 1)
  expect(problem, 'models', 'names of networks', lambda names: len(names) > 0)
  for name in problem['models']:
    settings = choose(config['models'], name, 'models')['optimizer']
    _optimizer(settings)


def _are_factors(values: tuple[float, ...]) -> bool:
  return len(values) > 0 and 0 < min(values) <= max(values) <= 1


def _are_shares(values: tuple[float, ...]) -> bool:
  return len(values) > 0 and 0 <= min(values) <= max(values) <= 1


def _optimizer(settings: dict[str, Any]):
  factory = choose(components.OPTIMIZERS, settings['name'], 'optimizer.name')
  try:
    return factory(**options(settings))
  except TypeError as error:
    raise SettingsError(f'optimizer: {error}') from error


def _load(config: dict[str, Any]) -> tuple[isjax.Batch, Metadata]:
  """As many training examples of each class, in floating point."""
  problem = config['problems'][config['problem']]
  name, block = problem['data'], problem['block']
  try:
    batch, metadata = load(name, 'train')
  except (ValueError, FileNotFoundError, ImportError) as error:
    raise UnavailableError(
      f'No {name}.npz was read from the folder that ISJAX_DATA_DIR names.'
    ) from error
  height, width, channels = metadata.input_shape
  if height % block or width % block:
    raise SettingsError(
      f'block must divide the {height} x {width} pixels of {name}; got {block}.'
    )
  most, size = min(metadata.class_counts), problem['class_size']
  if not 1 <= size <= most:
    raise SettingsError(
      f'class_size must be at least 1 and at most {most}, the smallest class '
      f'of {name}; got {size}.'
    )
  order = np.random.RandomState(config['seed']).permutation(len(batch.targets))
  labels = np.asarray(batch.targets)[order]
  classes = range(metadata.num_classes)
  chosen = [order[labels == label][:size] for label in classes]
  batch, metadata, _ = keep(batch, metadata, np.concatenate(chosen))
  shape = height // block, block, width // block, block, channels
  inputs = rescale(metadata.max_value)(batch.inputs)
  inputs = inputs.reshape(-1, *shape).mean((2, 4))
  return batch._replace(inputs=inputs), metadata


def _together(samplers: list[isjax.Sampler]) -> isjax.Sampler:
  """The first sampler, while the others observe what it draws."""
  first = samplers[0]

  def propose(key, states):
    return first.propose(key, states[0])

  def select(key, states, indices, scores):
    draw, state, info = first.select(key, states[0], indices, scores)
    return draw, (state, *states[1:]), info

  def observe(states, draw, observation):
    return tuple(
      sampler.observe(state, draw, observation)
      for sampler, state in zip(samplers, states, strict=True)
    )

  def law(states, scores, indices=None):
    return first.law(states[0], scores, indices)

  def start(key):
    return tuple(sampler.init(key) for sampler in samplers)

  return isjax.Sampler(start, propose, select, observe, law)


class _Shown(NamedTuple):
  """What a window has shown: all laws, and the error in its last epoch."""

  laws: dict[str, np.ndarray]
  error: float


def _window(
  config: dict[str, Any],
  model: str,
  metadata: Metadata,
) -> Callable[[isjax.Batch, int], _Shown]:
  """Returns what trains a network through the window, given data and seed."""
  settings = config['models'][model]
  epochs = config['problems'][config['problem']]['warmup_epochs']
  size, b = metadata.num_examples, config['batch_size']
  module = components.model(settings['model'], metadata)
  sampler = _together(
    [
      early_importance(size, b, warmup_epochs=epochs, score=name)
      for name in _WATCHED
    ]
  )
  tx = isjax.importance_weighted(_optimizer(settings['optimizer']), size)
  step = isjax.make_train_step(
    make_apply_fn(module),
    loss_fn,
    sampler,
    tx,
    score=score,
    statistics=_STATISTICS,
  )
  loop = isjax.make_loop(step, math.ceil(epochs * size / b))

  @jax.jit
  def first_state(key, sample):
    model_key, run_key = jax.random.split(key)
    variables = init(module, model_key, sample)
    return isjax.init_train_state(run_key, *variables, sampler, tx)

  def train(data: isjax.Batch, seed: int) -> _Shown:
    key = jax.random.fold_in(jax.random.key(config['seed']), seed)
    state, shown = loop(first_state(key, data.inputs[:1]), data)
    error = float(jnp.mean(shown['error'][-math.ceil(size / b) :]))
    return _Shown(laws(*(s.shown for s in state.sampler_state)), error)

  return train


def _measure(config: dict[str, Any], report: Report) -> dict[str, Any]:
  data, metadata = _load(config)
  problem = config['problems'][config['problem']]
  windows = {}

  def shown(model, data, metadata, seed):
    known = model, metadata.num_examples
    if known not in windows:
      try:
        windows[known] = _window(config, model, metadata)
      except ValueError as error:
        raise SettingsError(f'{config["problem"]}, {model}: {error}') from error
    found = windows[known](data, seed)
    if not all(np.isfinite(law).all() for law in found.laws.values()):
      raise SettingsError(
        f'{config["problem"]}: the window of {model} showed values that are '
        'not finite; lower its optimizer.learning_rate.'
      )
    return found

  at_once = functools.partial(shown, problem['models'][0])
  parts = (
    _balance(config, at_once, data, metadata),
    _noise(config, at_once, data, metadata),
    _models(config, shown, data, metadata),
  )
  rows = []
  for i, part in enumerate(parts):
    rows += part
    report((i + 1) / len(parts), {'rows': len(rows)})
  return {
    'num_examples': metadata.num_examples,
    'input_shape': list(data.inputs.shape[1:]),
    'num_classes': metadata.num_classes,
    'rows': rows,
  }


def _balance(config, shown, data, metadata) -> Iterator[dict[str, Any]]:
  """A row per imbalance, seed and law."""
  for factor in config['factors']:
    for seed in range(config['num_seeds']):
      try:
        subset, about, _ = long_tail(data, metadata, seed=seed, factor=factor)
      except ValueError as error:
        raise SettingsError(f'factors: {error}') from error
      found = shown(subset, about, seed)
      for name, law in found.laws.items():
        mass = np.bincount(subset.targets, law, about.num_classes)
        yield {
          'row': 'balance',
          'factor': factor,
          'seed': seed,
          'size': about.num_examples,
          'error': found.error,
          'law': name,
          'effective_classes': effective_classes(mass),
          'rarest_mass': float(mass[-1]),
        } | {f'class_{k}': float(m) for k, m in enumerate(mass)}


def _noise(config, shown, data, metadata) -> Iterator[dict[str, Any]]:
  """A row per share of wrong labels, seed and law."""
  for share in config['shares']:
    for seed in range(config['num_seeds']):
      noisy, about, changes = symmetric_noise(
        data, metadata, seed=seed, share=share
      )
      found = shown(noisy, about, seed)
      for name, law in found.laws.items():
        yield {
          'row': 'noise',
          'share': share,
          'seed': seed,
          'size': about.num_examples,
          'error': found.error,
          'law': name,
          'flipped_mass': float(law[changes.flipped].sum()),
          'effective_share': float(1 / (len(law) * np.sum(law**2))),
        }


def _models(config, shown, data, metadata) -> Iterator[dict[str, Any]]:
  """A row per law and pair of networks, itself included."""
  models = config['problems'][config['problem']]['models']
  num_seeds = config['num_seeds']
  found = [
    [shown(model, data, metadata, seed) for seed in range(num_seeds)]
    for model in models
  ]
  for name in found[0][0].laws:
    if name == 'focal, squared':
      continue  # ranked as by focal
    ranks = [stats.rankdata(one.laws[name]) for row in found for one in row]
    if min(np.ptp(rank) for rank in ranks) == 0:
      continue  # a constant has no correlation
    shape = 2 * (len(models), num_seeds)
    correlations = np.corrcoef(ranks).reshape(shape)
    pairs = itertools.combinations_with_replacement(range(len(models)), 2)
    for i, j in pairs:
      yield {
        'row': 'models',
        'law': name,
        'first': models[i],
        'second': models[j],
        'size': metadata.num_examples,
        'error': float(np.mean([one.error for one in found[i]])),
      } | agreement(correlations, i, j)._asdict()


STUDY = Study(
  field='problem',
  check=_check,
  measure=_measure,
  sections=early_law_report.sections,
  figures=early_law_figures.figures,
)
