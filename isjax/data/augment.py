"""Random views of an image, made inside the step on the device.

An augmentation is a function of (key, image) of one example, for the argument
`augment` of `make_train_step`: image [H, W, C] of any dtype, after
`preprocess`; the result has its shape and dtype. It depends on nothing but key
and image, and the step's keys on nothing but the run's key, the step and the
proposal slot. So the training pass sees the view that was scored, and an
example that is proposed twice is seen in two views. `limit_views` and
`sometimes` make another function of it, one that the step tells more: they go
with its argument `augment_by`.

One threefry block gives an augmentation all its random bits. A dynamic slice
crops: on CPU a gather of rows and columns takes 1.3 to 1.7 times as long, a
product with one-hot matrices 10 times, a choice among static shifts 30 to 70.
"""

from collections.abc import Callable
import functools
from typing import TypeAlias

import jax
from jax import lax
import jax.numpy as jnp

from isjax import _validate
from isjax.losses import target_distribution
from isjax.resampling import uniform_indices

AugmentFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
# How an image goes on beyond its border: the names of `jnp.pad`.
_MODES = {'zero': 'constant', 'reflect': 'reflect', 'edge': 'edge'}


def pad_and_crop(padding: int = 4, mode: str = 'zero') -> AugmentFn:
  """Pads an image on all sides and crops it to its size at a random place.

  Each of the (2 padding + 1)^2 places has the same chance, to within 2^-64.

  Args:
    padding: pixels on each side, at least 1 and less than the image's sides.
    mode: what they are: 'zero', black or the mean if `preprocess` subtracts it;
      'reflect', the image mirrored at its outermost pixels, which are not
      repeated; 'edge', the outermost pixels repeated.

  Raises:
    ValueError: for a bad argument; when called, for an image that is not
      [H, W, C] or no larger than the padding.

  Source: He et al. (2016), arXiv:1512.03385, section 4.2, with 4 zeros.
  """
  _validate.positive_integers(padding=padding)
  _validate.one_of(_MODES, mode=mode)

  def augment(key: jax.Array, image: jax.Array) -> jax.Array:
    height, width = _sides(image)
    if padding >= min(height, width):
      raise ValueError(
        f'padding must be less than the sides of the image, {height} x '
        f'{width}; got {padding}.'
      )
    return _crop(key, image, padding, padding, mode)

  return augment


def shift(fraction: float = 0.1, mode: str = 'edge') -> AugmentFn:
  """Shifts an image by a share of its height and of its width, both random.

  The shift is of whole pixels, those from -int(fraction H) to int(fraction H)
  with the same chance, to within 2^-64, and likewise along W.

  Args:
    fraction: the largest shift relative to the image's side, in (0, 1).
    mode: what comes in from outside: as in `pad_and_crop`.

  Raises:
    ValueError: for a bad argument; when called, for an image that is not
      [H, W, C], or so small that nothing would ever shift.

  Source: Katharopoulos & Fleuret (2018), arXiv:1803.00942, section 4, on CIFAR,
  together with a flip. Their code draws a real shift up to the fraction.
  """
  _validate.positive(fraction=fraction)
  _validate.decays(fraction=fraction)
  _validate.one_of(_MODES, mode=mode)

  def augment(key: jax.Array, image: jax.Array) -> jax.Array:
    rows, columns = (int(fraction * side) for side in _sides(image))
    if rows == columns == 0:
      raise ValueError(
        'fraction must be at least one pixel of the image, '
        f'{jnp.shape(image)}; got {fraction}.'
      )
    return _crop(key, image, rows, columns, mode)

  return augment


def flip(probability: float = 0.5) -> AugmentFn:
  """Mirrors an image left to right with a given chance.

  Args:
    probability: in [0, 1]; kept to within 2^-23, and exactly if a multiple.

  Raises:
    ValueError: for a probability out of range; when called, for an image that
      is not [H, W, C].
  """
  _validate.fractions(probability=probability)

  def augment(key: jax.Array, image: jax.Array) -> jax.Array:
    _, width = _sides(image)
    columns = jnp.arange(width)
    mirrored = jax.random.bernoulli(key, probability)
    # Fused with a crop, a choice between two images would make both crops.
    columns = jnp.where(mirrored, columns[::-1], columns)
    return jnp.asarray(image).at[:, columns].get(mode='promise_in_bounds')

  return augment


def cutout(size: int) -> AugmentFn:
  """Sets a square of an image to zero, with its centre on a random pixel.

  Each pixel has the same chance to be the centre, to within 2^-64, so that the
  square may reach beyond the border; then what is left of it is cut out. It
  covers the rows from c - size // 2 to c - size // 2 + size - 1 around row c.

  Args:
    size: side of the square, at least 1; the paper has 16 for CIFAR-10 and 8
      for CIFAR-100. Zero is black, or the mean if `preprocess` subtracts it.

  Raises:
    ValueError: for a bad argument; when called, for an image that is not
      [H, W, C].

  Source: DeVries & Taylor (2017), arXiv:1708.04552, section 3.2.
  """
  _validate.positive_integers(size=size)

  def covered(center: jax.Array, side: int) -> jax.Array:
    distance = jnp.arange(side) - (center - size // 2)
    return (distance >= 0) & (distance < size)

  def augment(key: jax.Array, image: jax.Array) -> jax.Array:
    height, width = _sides(image)
    row, column = _uniform_place(key, height, width)
    hole = covered(row, height)[:, None] & covered(column, width)[None, :]
    return jnp.where(hole[:, :, None], jnp.zeros_like(image), image)

  return augment


def compose(*augments: AugmentFn) -> AugmentFn:
  """Makes augmentations one after the other, each by a key of its own."""

  def augment(key: jax.Array, image: jax.Array) -> jax.Array:
    keys = jax.random.split(key, len(augments))
    for part, part_key in zip(augments, keys, strict=True):
      image = part(part_key, image)
    return image

  return augment


def limit_views(
  augment: AugmentFn, num_views: int
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Shows each example in the same few views, however often it is drawn.

  As if a training set with num_views images for each one had been stored, of
  which every draw takes one, each as likely. Views are made by keys of their
  own, from the numbers of the example and of the view, and so are the same in
  all runs; two of an example may happen to be alike.

  Args:
    augment: (key, image) -> image, what makes the views.
    num_views: V >= 1. With 1 a training set is augmented once and for all.

  Returns:
    (key, image, index i32[]) -> image; index is the example's number, which
    the step tells by augment_by=lambda state, indices: indices.

  Raises:
    ValueError: for a bad number.
  """
  _validate.positive_integers(num_views=num_views)

  def limited(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
    view = uniform_indices(key, num_views, 1)[0]
    own = jax.random.fold_in(jax.random.key(0), index)
    return augment(jax.random.fold_in(own, view), image)

  return limited


def sometimes(
  augment: AugmentFn,
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Augments an image with a chance that is told along with it.

  The chance is the strength of the augmentation: with
  augment_by=importance_ranks of `samplers.early_importance`, the more important
  an example is, the more of its draws are augmented, an extension of ours.

  Args:
    augment: (key, image) -> image.

  Returns:
    (key, image, chance f32[] in [0, 1]) -> image. The chance is kept to within
    2^-23; 0 never augments, 1 always does.
  """

  def chosen(key: jax.Array, image: jax.Array, chance: jax.Array) -> jax.Array:
    choice_key, view_key = jax.random.split(key)
    augmented = jax.random.bernoulli(choice_key, chance)
    return jnp.where(augmented, augment(view_key, image), image)

  return chosen


def mixup(
  key: jax.Array,
  inputs: jax.Array,
  targets: jax.Array,
  num_classes: int,
  alpha: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each example of a batch with the next one, the last with the first.

  With lambda_k ~ Beta(alpha, alpha), one for each pair:

      x_k <- lambda_k x_k + (1 - lambda_k) x_(k+1), and the targets likewise.

  The training step has no place for it: what it draws, scores and observes is
  one example, and a mixture is two. It serves loops of one's own, under uniform
  sampling above all. Under a law p with independent draws the pair (i, j) has
  the chance p_i p_j, so the weight that keeps mixup's objective, the mean over
  all pairs, is w_i w_j, the product of both importance weights. With w_i alone
  the partners follow p and the estimate is biased, even where every w_i is
  exact. Draws that depend on each other, such as those of an epoch or of one
  pool, form pairs with another law, and the product is then not exact.

  Args:
    key: PRNG key.
    inputs: floats [b, ...].
    targets: labels i32[b] in [0, K), or distributions [b, K].
    num_classes: K.
    alpha: > 0; small values leave most examples nearly as they are, 1 makes
      lambda uniform.

  Returns:
    (inputs [b, ...] of the same dtype, targets f32[b, K]).

  Raises:
    ValueError: for a bad argument.

  Source: Zhang et al. (2018), arXiv:1710.09412, section 2.
  """
  _validate.positive_integers(num_classes=num_classes)
  _validate.positive(alpha=alpha)
  _validate.finite(alpha=alpha)
  if not jnp.issubdtype(inputs.dtype, jnp.floating):
    raise ValueError(
      f'inputs must be floats, after preprocess; got {inputs.dtype}.'
    )
  to_distribution = functools.partial(
    target_distribution, num_classes=num_classes
  )
  shares = jax.random.beta(key, alpha, alpha, inputs.shape[:1])

  def mix(values: jax.Array) -> jax.Array:
    share = lax.expand_dims(shares.astype(values.dtype), range(1, values.ndim))
    return share * values + (1 - share) * jnp.roll(values, -1, axis=0)

  return mix(inputs), mix(jax.vmap(to_distribution)(targets))


def _sides(image: jax.Array) -> tuple[int, int]:
  """(H, W) of an image."""
  shape = jnp.shape(image)
  if len(shape) != 3:
    raise ValueError(
      f'image must be one example, [H, W, C]; got shape {shape}.'
    )
  return shape[:2]


def _crop(
  key: jax.Array, image: jax.Array, rows: int, columns: int, mode: str
) -> jax.Array:
  """A view of the padded image, each place with the same chance."""
  margins = (rows, rows), (columns, columns), (0, 0)
  padded = jnp.pad(image, margins, mode=_MODES[mode])
  row, column = _uniform_place(key, 2 * rows + 1, 2 * columns + 1)
  return lax.dynamic_slice(padded, (row, column, 0), image.shape)


def _uniform_place(
  key: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """(row, column), both from one draw among all places."""
  return divmod(uniform_indices(key, height * width, 1)[0], width)
