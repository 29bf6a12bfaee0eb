"""Ways to draw items by weight, each as its own documentation would have it.

What can be prepared is, and what can be compiled is; arrays stay where they are
used. Every call draws with new random numbers: with those of the call before it
would find the same parts of its table in the cache.

What a rival does with its random numbers, as far as it is known, gives the law
that it really follows.
"""

from collections.abc import Callable, Iterator
import functools
import importlib.util
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import laws
from isjax import alias, resampling, sum_tree


class Rival:
  """Draws items with replacement.

  Args:
    weights: f32[N] >= 0, brought into the form that the rival takes.

  name:    as in the tables.
  package: that it comes from.
  work:    of a call that draws b items, once built.
  """

  name: str
  package: str
  work: str
  # Makes what is kept between draws, and comes before the first; None where
  # nothing is kept.
  build: Callable[[Any], None] | None = None

  def __init__(self, weights: np.ndarray):
    raise NotImplementedError

  def draw(self, count: int) -> Any:
    """Returns so many items, once they are there."""
    raise NotImplementedError

  def law(self) -> np.ndarray | None:
    """Returns the law it follows, f64[>= N]; None where that is not known."""
    return None

  @classmethod
  def refusal(cls, num_items: int, count: int) -> str:
    """Returns why it cannot draw `count` of so many items; '' where it can."""
    del num_items, count
    return ''


def is_present(kind: type[Rival]) -> bool:
  """Returns whether the package of a rival is installed."""
  return importlib.util.find_spec(kind.package) is not None


def _keys() -> Iterator[jax.Array]:
  return itertools.cycle([jax.random.key(seed) for seed in range(256)])


def _normalised(weights: np.ndarray) -> np.ndarray:
  """Returns the weights over their sum, f64[N]."""
  weights = weights.astype(np.float64)
  return weights / weights.sum()


class AliasTable(Rival):
  """The table of this project."""

  name = 'isjax'
  package = 'isjax'
  work = 'b'

  def __init__(self, weights: np.ndarray):
    self._weights = jnp.asarray(weights)
    self._keys = _keys()

  def build(self) -> None:
    """Builds the table."""
    self._table = jax.block_until_ready(alias.build(self._weights))

  def draw(self, count: int) -> jax.Array:
    """Draws from the table."""
    indices = alias.sample(next(self._keys), self._table, (count,))
    return indices.block_until_ready()

  def law(self) -> np.ndarray:
    """Reads the table."""
    return laws.of_table(self._table.threshold, self._table.alias)


class WithProbabilities(AliasTable):
  """The table, which also tells how probable each draw was."""

  name = 'isjax, with probabilities'

  def draw(self, count: int) -> jax.Array:
    """Draws, and looks up."""
    drawn = alias.sample_with_probabilities(
      next(self._keys), self._table, (count,)
    )
    return jax.block_until_ready(drawn)[0]


class WeightedEpoch(AliasTable):
  """The table, whose items come floor or ceil of N p_i times each."""

  name = 'isjax weighted_epoch'
  work = 'N'

  def draw(self, count: int) -> jax.Array:
    """Draws an epoch, compiled."""
    drawn = _weighted_epoch(next(self._keys), self._table, count)
    return drawn.block_until_ready()

  @classmethod
  def refusal(cls, num_items: int, count: int) -> str:
    """Is no sequence of independent draws."""
    return '' if num_items == count else 'epochs only'


_weighted_epoch = jax.jit(resampling.weighted_epoch, static_argnums=2)


class SumTree(Rival):
  """The tree of this project, made for scores that change."""

  name = 'isjax sum_tree'
  package = 'isjax'
  work = 'b log N'

  def __init__(self, weights: np.ndarray):
    self._weights = jnp.asarray(weights)
    self._keys = _keys()
    self._update = jax.jit(sum_tree.update, donate_argnums=0)

  def build(self) -> None:
    """Sums all."""
    self._tree = jax.block_until_ready(sum_tree.build(self._weights))

  def draw(self, count: int) -> jax.Array:
    """Draws; with the probabilities, which come along."""
    drawn = sum_tree.sample(next(self._keys), self._tree, (count,))
    return jax.block_until_ready(drawn)[0]

  def update(self, indices: jax.Array, scores: jax.Array) -> None:
    """Replaces some scores, in place."""
    tree = self._update(self._tree, indices, scores)
    self._tree = jax.block_until_ready(tree)

  def law(self) -> np.ndarray:
    """As it is published, in float32."""
    return np.asarray(sum_tree.probabilities(self._tree), np.float64)


class JaxChoice(Rival):
  """Adds up the weights in float32, and searches."""

  name = 'jax.random.choice'
  package = 'jax'
  work = 'N + b log N'

  def __init__(self, weights: np.ndarray):
    self._probabilities = jnp.asarray(_normalised(weights), jnp.float32)
    self._keys = _keys()

  def draw(self, count: int) -> jax.Array:
    """Draws, compiled."""
    size = len(self._probabilities)
    return _choice(
      next(self._keys), size, (count,), p=self._probabilities
    ).block_until_ready()

  def law(self) -> np.ndarray:
    """Tries every uniform."""
    pick = functools.partial(choice_of, self._probabilities)
    return laws.by_enumeration(pick, len(self._probabilities))


_choice = jax.jit(jax.random.choice, static_argnums=(1, 2))


@jax.jit
def choice_of(probabilities: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns what `jax.random.choice` makes of uniforms f32[m]."""
  cumulative = jnp.cumsum(probabilities)
  return jnp.searchsorted(cumulative, cumulative[-1] * (1 - uniform))


class JaxCategorical(Rival):
  """Takes the largest of N random numbers, for each draw."""

  name = 'jax.random.categorical'
  package = 'jax'
  work = 'N b'

  def __init__(self, weights: np.ndarray):
    self._logits = jnp.log(jnp.asarray(weights))
    self._keys = _keys()

  def draw(self, count: int) -> jax.Array:
    """Draws, compiled."""
    return _categorical(
      next(self._keys), self._logits, shape=(count,)
    ).block_until_ready()

  @classmethod
  def refusal(cls, num_items: int, count: int) -> str:
    """Takes seconds beyond 2^26 random numbers."""
    return 'N b > 2^26' if num_items * count > 2**26 else ''


_categorical = jax.jit(jax.random.categorical, static_argnames='shape')


class NumpyChoice(Rival):
  """Adds up the probabilities in float64, and searches."""

  name = 'numpy Generator.choice'
  package = 'numpy'
  work = 'N + b log N'

  def __init__(self, weights: np.ndarray):
    self._probabilities = _normalised(weights)
    self._random = np.random.default_rng(0)

  def draw(self, count: int) -> np.ndarray:
    """Draws."""
    size = len(self._probabilities)
    return self._random.choice(size, count, p=self._probabilities)

  def law(self) -> np.ndarray:
    """Counts the uniforms between two sums."""
    return laws.by_search(self._sums(), 'right')

  def _sums(self) -> np.ndarray:
    sums = np.cumsum(self._probabilities)
    sums /= sums[-1]
    return sums


class KeptSums(NumpyChoice):
  """What one would write to spare numpy the sums of every call."""

  name = 'numpy searchsorted, sums kept'
  work = 'b log N'

  def build(self) -> None:
    """Adds up."""
    self._cumulative = self._sums()

  def draw(self, count: int) -> np.ndarray:
    """Searches."""
    uniform = self._random.random(count)
    return np.searchsorted(self._cumulative, uniform, 'right')


class TorchMultinomial(Rival):
  """Adds up the weights in float32, and searches."""

  name = 'torch.multinomial'
  package = 'torch'
  work = 'N + b log N'
  _dtype = np.float32

  def __init__(self, weights: np.ndarray):
    import torch  # an extra

    torch.set_num_threads(1)
    torch.manual_seed(0)
    self._multinomial = torch.multinomial
    self._weights = torch.from_numpy(weights.astype(self._dtype))

  def draw(self, count: int) -> Any:
    """Draws."""
    return self._multinomial(self._weights, count, replacement=True)

  def law(self) -> np.ndarray:
    """Counts the uniforms, float64 ones, between two sums."""
    sums = np.cumsum(self._weights.numpy())
    sums /= sums[-1]
    return laws.by_search(sums, 'left')

  @classmethod
  def refusal(cls, num_items: int, count: int) -> str:
    """It raises an error for more."""
    return 'N > 2^24' if num_items > 2**24 else ''


class TorchSampler(TorchMultinomial):
  """The sampler of a DataLoader: `multinomial` in float64, item by item."""

  name = 'torch WeightedRandomSampler'
  _dtype = np.float64

  def __init__(self, weights: np.ndarray):
    from torch.utils.data import WeightedRandomSampler  # an extra

    super().__init__(weights)
    self._sampler = functools.cache(
      functools.partial(WeightedRandomSampler, self._weights)
    )

  def draw(self, count: int) -> list[int]:
    """Iterates over an epoch of so many draws."""
    return list(self._sampler(count))


class ScipyUrn(Rival):
  """An alias table in float64, which cannot be read."""

  name = 'scipy DiscreteAliasUrn'
  package = 'scipy'
  work = 'b'

  def __init__(self, weights: np.ndarray):
    from scipy.stats.sampling import DiscreteAliasUrn

    self._urn_of = DiscreteAliasUrn
    self._probabilities = _normalised(weights)
    self._random = np.random.default_rng(0)

  def build(self) -> None:
    """Builds the table."""
    self._urn = self._urn_of(self._probabilities, random_state=self._random)

  def draw(self, count: int) -> np.ndarray:
    """Draws."""
    return self._urn.rvs(count)


class Vose(Rival):
  """An alias table in float64, which cannot be read."""

  name = 'vose Sampler'
  package = 'vose'
  work = 'b'

  def __init__(self, weights: np.ndarray):
    import vose  # an extra

    self._sampler_of = vose.Sampler
    self._weights = weights.astype(np.float64)

  def build(self) -> None:
    """Builds the table."""
    self._sampler = self._sampler_of(self._weights, seed=0)

  def draw(self, count: int) -> np.ndarray:
    """Draws."""
    return self._sampler.sample(count)


class Flashbax(Rival):
  """A binary tree of sums in float32, made for weights that change."""

  name = 'flashbax sum_tree'
  package = 'flashbax'
  work = 'b log N'

  def __init__(self, weights: np.ndarray):
    from flashbax.buffers import sum_tree as tree  # an extra

    size = len(weights)
    self._weights = jnp.asarray(weights)
    self._keys = _keys()
    self._build = jax.jit(
      lambda weights: tree.set_batch_bincount(
        tree.init(size), jnp.arange(size), weights
      )
    )
    # Its documentation: the faster one on CPU, for batches.
    self._update = jax.jit(tree.set_batch_scan, donate_argnums=0)
    self._pick = jax.jit(jax.vmap(tree.sample, (None, None, 0)))
    self._draw = jax.jit(
      lambda key, state, count: self._pick(
        state, None, jax.random.uniform(key, (count,))
      ),
      static_argnums=2,
    )

  def build(self) -> None:
    """Sets all weights at once."""
    self._tree = jax.block_until_ready(self._build(self._weights))

  def draw(self, count: int) -> jax.Array:
    """Draws independently, compiled."""
    return self._draw(next(self._keys), self._tree, count).block_until_ready()

  def update(self, indices: jax.Array, weights: jax.Array) -> None:
    """Replaces some weights, in place."""
    tree = self._update(self._tree, indices, weights)
    self._tree = jax.block_until_ready(tree)

  def law(self) -> np.ndarray:
    """Tries every uniform."""
    pick = functools.partial(self._pick, self._tree, None)
    return laws.by_enumeration(pick, len(self._weights))


CONTENDERS = (
  AliasTable,
  WithProbabilities,
  WeightedEpoch,
  SumTree,
  JaxChoice,
  JaxCategorical,
  NumpyChoice,
  KeptSums,
  TorchMultinomial,
  TorchSampler,
  ScipyUrn,
  Vose,
  Flashbax,
)
OURS = tuple(kind for kind in CONTENDERS if kind.package == 'isjax')
PEERS = tuple(k for k in CONTENDERS if k not in (*OURS, KeptSums))
TREES = (SumTree, Flashbax)
