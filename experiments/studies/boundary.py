"""Where the draws fall in a plane that a winding boundary divides in two.

Points are uniform in the unit square, and their classes are drawn with chances
that change within a narrow band about the boundary. A network is trained on
them; on the way, the law of each score is mapped, and compared with that of the
gradient's norm. As the chances are known, so are all expectations.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import spatial

from experiments import components
from experiments.settings import SettingsError, choose
from experiments.studies import boundary_figures, boundary_report
from experiments.studies.study import Report, Study, are_integers, expect
from experiments.studies.training import loss_fn
import isjax
from isjax.models import MLP, init, make_apply_fn
from isjax.scores import SCORES, gradient_norm
from isjax.transforms import scale_by_progress

_TINY = np.finfo(np.float64).tiny
_CURVE_POINTS = 20_000  # of the boundary, for distances


def boundary(x: np.ndarray) -> np.ndarray:
  """Returns y = sin(4 (x + 1/2)^5) / 3 + 1/2, in [1/6, 5/6]."""
  return np.sin(4 * (x + 0.5) ** 5) / 3 + 0.5


def chance(points: np.ndarray, smoothness: float) -> np.ndarray:
  """Returns the chance of class 1 at points [n, 2], f64[n].

  sigmoid(smoothness (y - boundary(x))): half on the boundary.

  Source: Canévet et al. (2016), Importance sampling tree for large-scale
  empirical expectation, ICML.
  """
  x, y = np.asarray(points, np.float64).T
  return 1 / (1 + np.exp(-smoothness * (y - boundary(x))))


def draw_points(seed: int, num_examples: int, smoothness: float) -> isjax.Batch:
  """Returns uniform points f32[N, 2] and classes drawn by their chances."""
  random = np.random.RandomState(seed)
  points = random.uniform(size=(num_examples, 2))
  labels = random.uniform(size=num_examples) < chance(points, smoothness)
  return isjax.Batch(
    jnp.asarray(points, jnp.float32), jnp.asarray(labels, jnp.int32)
  )


def grid(size: int) -> np.ndarray:
  """Returns the middles of size^2 equal squares, f64[size^2, 2], y by y."""
  middles = (np.arange(size) + 0.5) / size
  x, y = np.meshgrid(middles, middles)
  return np.stack([x.ravel(), y.ravel()], 1)


def distance_to_boundary(points: np.ndarray) -> np.ndarray:
  """Returns the distance of points [n, 2] to the curve over [0, 1], f64[n]."""
  x = np.linspace(0, 1, _CURVE_POINTS)
  tree = spatial.cKDTree(np.stack([x, boundary(x)], 1))
  return tree.query(points)[0]


class Square(NamedTuple):
  """The unit square as a grid, under the true law of the labels.

  examples:      the n points of the grid twice, as class 0 and as class 1.
  label_chances: f64[2 n], of each example's class at its point.
  distance:      f64[n], of each point to the boundary.
  """

  examples: isjax.Batch
  label_chances: np.ndarray
  distance: np.ndarray

  @property
  def chances(self) -> np.ndarray:
    """f64[2 n], of each example; they sum to 1."""
    return self.label_chances / len(self.distance)


def square(size: int, smoothness: float) -> Square:
  """Returns the unit square as size^2 points."""
  points = grid(size)
  eta = chance(points, smoothness)
  inputs = jnp.asarray(np.concatenate([points, points]), jnp.float32)
  targets = jnp.repeat(jnp.arange(2, dtype=jnp.int32), len(points))
  return Square(
    isjax.Batch(inputs, targets),
    np.concatenate([1 - eta, eta]),
    distance_to_boundary(points),
  )


def known_scores(where: Square) -> dict[str, np.ndarray]:
  """Returns the scores of a network that knows the chances, f64[2 n] each."""
  wrong = 1 - where.label_chances
  return {
    boundary_report.BOUND: math.sqrt(2) * wrong,
    'loss': -np.log(np.maximum(where.label_chances, _TINY)),
  }


def density(scores: np.ndarray, chances: np.ndarray) -> np.ndarray:
  """Returns where draws by a score fall, f64[n], 1 on average.

  Args:
    scores: f64[2 n] >= 0, of the examples of a Square.
    chances: f64[2 n], of the same.
  """
  total = (chances * scores).reshape(2, -1).sum(0)
  mean = total.mean()
  return total / mean if mean > 0 else np.ones_like(total)


def compare(
  scores: np.ndarray, norms: np.ndarray, chances: np.ndarray
) -> dict[str, float]:
  """Compares a score with the gradient's norm, under the examples' law.

  Args:
    scores: f64[m] >= 0.
    norms: f64[m] >= 0, not all 0.
    chances: f64[m], of the examples.

  Returns:
    `correlation`, where both vary; and `second_moment`, that of the weighted
    gradient of one draw by the score, that of a uniform draw being 1. An
    example of score 0 that has a gradient makes it infinite.
  """
  varies = min(np.ptp(scores), np.ptp(norms)) > 0
  centred = [v - chances @ v for v in (scores, norms)]
  covariance = np.array([[chances @ (a * b) for b in centred] for a in centred])
  drawn = scores > 0
  ratio = np.where(norms > 0, np.inf, 0.0)
  ratio[drawn] = norms[drawn] ** 2 / scores[drawn]
  moment = (chances @ ratio) * (chances @ scores) / (chances @ norms**2)
  found = {'second_moment': float(moment)}
  if varies:
    scale = math.sqrt(covariance[0, 0] * covariance[1, 1])
    found['correlation'] = float(covariance[0, 1] / scale)
  return found


def _check(config: dict[str, Any]) -> None:
  method = choose(config['methods'], config['sampling'], 'sampling')
  choose(SCORES, method['score'], 'score')
  for field, requirement, holds in (
    ('smoothness', 'positive', lambda value: 0 < value < math.inf),
    ('num_examples', 'at least 1', lambda n: are_integers([n], 1)),
    ('hidden', 'widths of at least 1', lambda h: are_integers(h, 1)),
    ('momentum', 'in [0, 1)', lambda value: 0 <= value < 1),
    ('learning_rates', 'positive numbers', _are_positive),
    ('budget', 'at least 1', lambda budget: budget >= 1),
    ('stages', 'increasing numbers in (0, 1], the last 1', _are_stages),
    ('num_seeds', 'at least 2', lambda n: are_integers([n], 2)),
    ('map_size', 'at least 2', lambda size: are_integers([size], 2)),
    ('distances', 'positive numbers', _are_positive),
  ):
    expect(config, field, requirement, holds)


def _are_positive(values: tuple[float, ...]) -> bool:
  return len(values) > 0 and 0 < min(values) <= max(values) < math.inf


def _are_stages(values: tuple[float, ...]) -> bool:
  ordered = list(values) == sorted(set(values))
  return len(values) > 0 and ordered and values[0] > 0 and values[-1] == 1


class _Program(NamedTuple):
  """A network in training, under one compiled step.

  first_state: (key, learning rate) -> state.
  advance:     (state, data, cost) -> state, trained up to that cost.
  outputs:     (params, points f32[n, 2]) -> logits f32[n, 2].
  scores:      (params, examples) -> scores by name, f32[n] each.
  """

  first_state: Callable[..., isjax.TrainState]
  advance: Callable[..., isjax.TrainState]
  outputs: Callable[..., jax.Array]
  scores: Callable[..., dict[str, jax.Array]]


def _centre(points: jax.Array) -> jax.Array:
  """The unit square onto [-1, 1]^2."""
  return 2 * points - 1


def _cosine(progress: jax.Array) -> jax.Array:
  """From 1 to 0."""
  return 0.5 * (1 + jnp.cos(math.pi * progress))


def _program(config: dict[str, Any], data: isjax.Batch) -> _Program:
  method = config['methods'][config['sampling']]
  sampler = components.sampler(method['sampler'], data, config['budget'])
  module = MLP(2, tuple(config['hidden']))
  apply_fn = make_apply_fn(module)

  def transform(rate):
    sgd = optax.inject_hyperparams(optax.sgd)(
      learning_rate=rate, momentum=config['momentum']
    )
    decay = scale_by_progress(_cosine)
    return isjax.importance_weighted(
      optax.chain(sgd, decay), isjax.num_examples(data)
    )

  step = jax.jit(
    isjax.make_train_step(
      apply_fn,
      loss_fn,
      sampler,
      transform(1.0),
      score=SCORES[method['score']](loss_fn),
      preprocess=_centre,
      budget=config['budget'],
    )
  )

  @jax.jit
  def first_state(key, rate):
    model_key, run_key = jax.random.split(key)
    variables = init(module, model_key, data.inputs[:1])
    return isjax.init_train_state(run_key, *variables, sampler, transform(rate))

  @jax.jit
  def advance(state, data, cost):
    return jax.lax.while_loop(
      lambda state: state.cost < cost, lambda state: step(state, data)[0], state
    )

  @jax.jit
  def outputs(params, points):
    return apply_fn(params, {}, _centre(points), train=False, rngs=None)[0]

  norm = gradient_norm(apply_fn, loss_fn)

  @jax.jit
  def scores(params, examples):
    logits = outputs(params, examples.inputs)
    centred = examples._replace(inputs=_centre(examples.inputs))
    return {
      boundary_report.BOUND: SCORES['logit_gradient_norm'](loss_fn)(
        logits, examples.targets
      ),
      'loss': SCORES['loss'](loss_fn)(logits, examples.targets),
      boundary_report.OPTIMAL: norm(params, {}, centred),
    }

  return _Program(first_state, advance, outputs, scores)


def _measure(config: dict[str, Any], report: Report) -> dict[str, Any]:
  where = square(config['map_size'], config['smoothness'])
  sets = [
    draw_points(
      config['seed'] + s, config['num_examples'], config['smoothness']
    )
    for s in range(config['num_seeds'])
  ]
  program = _program(config, sets[0])
  rows, maps = [], {}
  for i, rate in enumerate(config['learning_rates']):
    for seed, data in enumerate(sets):
      key = jax.random.fold_in(jax.random.key(config['seed']), seed)
      about = {'learning_rate': rate, 'seed': seed}
      state = program.first_state(key, rate)
      for stage in config['stages']:
        cost = math.ceil(stage * config['budget'])
        state = program.advance(state, data, cost)
        found = _results(program, state, data, where)
        rows.append({'row': 'result', 'stage': stage} | about | found)
        if seed == 0:
          laws, drawn = _laws(config, program, state, where)
          at = {'row': 'law', 'stage': stage}
          rows += [at | about | law for law in laws]
          maps.setdefault(str(rate), []).append(drawn)
      done = i * len(sets) + seed + 1
      total = len(config['learning_rates']) * len(sets)
      report(done / total, {'excess_loss': rows[-1].get('excess_loss', 0.0)})
  known = known_scores(where)
  chances = where.chances
  rows += [
    {'row': 'known', 'score': name}
    | _nearness(config, where, scores)
    | compare(scores, known[boundary_report.BOUND], chances)
    for name, scores in known.items()
  ]
  own = where.label_chances.reshape(2, -1)
  return {
    'bayes_loss': float(chances @ known['loss']),
    'bayes_error': float(own.min(0).mean()),
    'num_params': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    'rows': rows,
    'maps': maps,
    'known_maps': {
      name: boundary_figures.encode(density(scores, chances))
      for name, scores in known.items()
    },
    'chance_map': boundary_figures.encode(own[1]),
  }


def _results(program, state, data, where) -> dict[str, float]:
  """Loss on the training set, and risks beyond those of the true chances."""
  losses = jax.vmap(loss_fn)(
    program.outputs(state.params, data.inputs), data.targets
  )
  train_loss = float(jnp.mean(losses))
  if not math.isfinite(train_loss):
    raise SettingsError(
      'the training loss is not finite; lower learning_rates.'
    )
  logits = program.outputs(state.params, where.examples.inputs)
  log_q = np.asarray(jax.nn.log_softmax(logits), np.float64)
  targets = np.asarray(where.examples.targets)
  own = log_q[np.arange(len(targets)), targets]
  entropy = known_scores(where)['loss']
  eta = where.label_chances.reshape(2, -1)
  chosen = log_q[: eta.shape[1]].argmax(1)
  error = 1 - eta[chosen, np.arange(eta.shape[1])]
  return {
    'steps': int(state.step),
    'cost': int(state.cost),
    'train_loss': train_loss,
    'excess_loss': float(where.chances @ (-own - entropy)),
    'excess_error': float(np.mean(error - eta.min(0))),
  }


def _laws(
  config, program, state, where
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """A row per score, and the map of each."""
  found = {
    name: np.asarray(values, np.float64)
    for name, values in program.scores(state.params, where.examples).items()
  }
  norms = found[boundary_report.OPTIMAL]
  rows = [
    {'score': name}
    | _nearness(config, where, scores)
    | compare(scores, norms, where.chances)
    for name, scores in found.items()
  ]
  maps = {
    name: boundary_figures.encode(density(scores, where.chances))
    for name, scores in found.items()
  }
  return rows, maps


def _nearness(config, where: Square, scores: np.ndarray) -> dict[str, float]:
  """How much of the draws, and of the area, is near the boundary."""
  drawn = density(scores, where.chances)
  shares = {}
  for i, distance in enumerate(config['distances']):
    near = where.distance < distance
    shares[f'near_mass_{i}'] = float(drawn[near].sum() / len(drawn))
    shares[f'near_area_{i}'] = float(near.mean())
  return shares


STUDY = Study(
  field='sampling',
  check=_check,
  measure=_measure,
  sections=boundary_report.sections,
  figures=boundary_figures.figures,
)
