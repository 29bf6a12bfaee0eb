"""What an epoch of weighted draws from imbalanced classes shows."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.settings import choose
from experiments.studies import weighted_epochs_report
from experiments.studies.study import Report, Study, are_integers, expect
from isjax import AliasTable, alias, resampling
from isjax.weights import class_weights


def _by_class_weights(kind: str) -> Callable[[np.ndarray], np.ndarray]:
  def weights(counts: np.ndarray) -> np.ndarray:
    labels = jnp.repeat(jnp.arange(len(counts)), jnp.asarray(counts))
    return np.asarray(class_weights(labels, len(counts), kind=kind))

  return weights


# name -> (images of each class i[K]) -> weight of an image of each class f[K]
KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'uniform': lambda counts: np.ones(len(counts)),
  'inverse_frequency': _by_class_weights('inverse_frequency'),
  'inverse_sqrt': _by_class_weights('inverse_sqrt'),
  'effective_number': _by_class_weights('effective_number'),
  # The mistake: sorted by size, then taken for sorted by class.
  'value_counts': lambda counts: 1 / np.sort(counts)[::-1],
}


class Expectation(NamedTuple):
  """Closed forms for a group of images; NaN where there is none.

  never_seen: share of the images that an epoch does not show.
  draws:      number of draws that fall on the group.
  draws_sd:   its standard deviation from epoch to epoch.
  """

  never_seen: float
  draws: float
  draws_sd: float


def expect_iid(probabilities: np.ndarray, num_draws: int) -> Expectation:
  """Of independent draws: each image's count is binomial.

  Args:
    probabilities: f64[n], of the images of the group.
    num_draws: of an epoch.
  """
  share = probabilities.sum()
  return Expectation(
    never_seen=float(np.mean((1 - probabilities) ** num_draws)),
    draws=float(num_draws * share),
    draws_sd=float(np.sqrt(num_draws * share * max(1 - share, 0))),
  )


def expect_systematic(probabilities: np.ndarray, num_draws: int) -> Expectation:
  """Of a systematic epoch: counts are num_draws p_i, rounded up or down."""
  counts = num_draws * probabilities
  return Expectation(
    never_seen=float(np.mean(np.maximum(1 - counts, 0))),
    draws=float(counts.sum()),
    draws_sd=np.nan,
  )


class _Method(NamedTuple):
  """A way to draw an epoch, and what is known of it."""

  draw: Callable[[jax.Array, AliasTable, int], jax.Array]
  expect: Callable[[np.ndarray, int], Expectation]


METHODS = {
  'iid': _Method(
    lambda key, table, num_draws: alias.sample(key, table, (num_draws,)),
    expect_iid,
  ),
  'systematic': _Method(resampling.weighted_epoch, expect_systematic),
}


def _check(config: dict[str, Any]) -> None:
  choose(KINDS, config['kind'], 'kind')
  expect(config, 'num_epochs', 'at least 2', lambda n: n >= 2)
  expect(
    config,
    'class_counts',
    'the images of each class, integers of at least 1',
    lambda counts: len(counts) > 0 and are_integers(counts, 1),
  )


def _measure(config: dict[str, Any], report: Report) -> dict[str, Any]:
  counts = np.array(config['class_counts'])
  # In random order, as files lie: systematic draws depend on it.
  labels = np.repeat(np.arange(len(counts)), counts)
  labels = np.random.RandomState(config['seed']).permutation(labels)
  weights = KINDS[config['kind']](counts)
  table = alias.build(jnp.asarray(weights[labels], jnp.float32))
  law = np.asarray(alias.probabilities(table), np.float64)
  groups = {str(c): labels == c for c in range(len(counts))}
  groups['all'] = np.ones(len(labels), bool)
  rows = []
  for i, (name, method) in enumerate(METHODS.items()):
    epochs = _epochs(
      name,
      table,
      config,
      lambda done, i=i: report((i + done) / len(METHODS), {}),
    )
    rows += [
      {'draws_by': name, 'class': group, 'images': int(members.sum())}
      | _exact(method.expect(law[members], len(labels)), int(members.sum()))
      | _statistics(epochs[:, members])
      for group, members in groups.items()
    ]
  return {'rows': rows}


def _epochs(method, table, config, report) -> np.ndarray:
  """How often each image is drawn, i32[num_epochs, N]."""
  keys = jax.random.split(jax.random.key(config['seed']), config['num_epochs'])
  counts = np.empty((len(keys), len(table.alias)), np.int32)
  for i, key in enumerate(keys):
    counts[i] = _epoch(key, table, method)
    report((i + 1) / len(keys))
  return counts


@functools.partial(jax.jit, static_argnames='method')
def _epoch(key: jax.Array, table: AliasTable, method: str) -> jax.Array:
  size = table.alias.shape[0]
  drawn = METHODS[method].draw(key, table, size)
  return jnp.bincount(drawn, length=size)


def _exact(expectation: Expectation, images: int) -> dict[str, float]:
  return {
    'exact_never_seen': expectation.never_seen,
    'exact_distinct': images * (1 - expectation.never_seen),
    'exact_draws': expectation.draws,
    'exact_draws_sd': expectation.draws_sd,
    'exact_draws_per_image': expectation.draws / images,
  }


def _statistics(counts: np.ndarray) -> dict[str, float]:
  """Mean and standard deviation over epochs, of i32[num_epochs, n]."""
  distinct = (counts > 0).sum(1)
  most = counts.max(1)
  draws = counts.sum(1)
  images = counts.shape[1]
  return {
    'never_seen': float(1 - distinct.mean() / images),
    'never_seen_sd': float(distinct.std(ddof=1) / images),
    'distinct': float(distinct.mean()),
    'distinct_sd': float(distinct.std(ddof=1)),
    'draws': float(draws.mean()),
    'draws_sd': float(draws.std(ddof=1)),
    'most_draws_of_an_image': float(most.mean()),
    'most_draws_of_an_image_ever': int(most.max()),
  }


STUDY = Study(
  field='kind',
  check=_check,
  measure=_measure,
  sections=weighted_epochs_report.sections,
  figures=weighted_epochs_report.figures,
)
