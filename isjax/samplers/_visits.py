"""What each example showed when it was trained on, gathered in place.

Indices equal to N are left out: an example may occur among the others any
number of times, and counts as often.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from isjax._in_place import after


class Moments(NamedTuple):
  """Of the values that each example showed.

  visits:  i32[N], how many.
  mean:    f32[N], their mean; 0 before the first.
  squares: f32[N], the sum of their squared deviations from it.
  """

  visits: jax.Array
  mean: jax.Array
  squares: jax.Array


class Forgetting(NamedTuple):
  """How often each example went from right to wrong.

  visits: i32[N], how many errors it showed, 0 or 1 each.
  wrong:  bool[N], whether the last one was 1; True before the first.
  events: i32[N], how often one was 1 and that before it 0.
  """

  visits: jax.Array
  wrong: jax.Array
  events: jax.Array


def no_moments(num_examples: int) -> Moments:
  """Before the first visit."""
  visits = jnp.zeros((num_examples,), jnp.int32)
  zeros = jnp.zeros((num_examples,), jnp.float32)
  return Moments(visits, zeros, zeros)


def no_forgetting(num_examples: int) -> Forgetting:
  """Before the first visit."""
  zeros = jnp.zeros((num_examples,), jnp.int32)
  return Forgetting(zeros, jnp.ones((num_examples,), bool), zeros)


def add_to_moments(
  moments: Moments, indices: jax.Array, values: jax.Array
) -> Moments:
  """Welford's update, exact where an example occurs more than once.

  With x the values of one example, n their number with the old ones, and old
  and new its means, new - old = sum(x - old) / n, and the sum of squares grows
  by sum (x - old)(x - new): each is a sum over what occurs in the batch.
  """
  visits = moments.visits.at[indices].add(1, mode='drop')
  from_old = values - moments.mean[indices]
  change = from_old / visits[indices]
  mean = moments.mean.at[indices].add(change, mode='drop')
  squares = from_old * (values - mean[indices])
  squares = moments.squares.at[indices].add(squares, mode='drop')
  return Moments(visits, mean, squares)


def add_to_forgetting(
  forgetting: Forgetting, indices: jax.Array, errors: jax.Array
) -> Forgetting:
  """Takes the occurrences of an example in a batch for one, wrong if any is."""
  wrong = errors > 0
  forgotten = wrong & ~forgetting.wrong[indices]
  events = forgetting.events[indices] + forgotten
  indices = after((events,), indices)
  return Forgetting(
    visits=forgetting.visits.at[indices].add(1, mode='drop'),
    wrong=forgetting.wrong.at[indices]
    .set(False, mode='drop')
    .at[indices]
    .max(wrong, mode='drop'),
    events=forgetting.events.at[indices].max(events, mode='drop'),
  )
