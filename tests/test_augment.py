"""Augmentations: what views there are, how often each, and who sees which."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from isjax import data, presample, scores
from isjax.data.augment import (
  compose,
  cutout,
  flip,
  limit_views,
  mixup,
  pad_and_crop,
  shift,
  sometimes,
)
from isjax.step import init_train_state, make_train_step
from isjax.transforms import importance_weighted
from isjax.types import Batch, take

# Programs run once: what counts is how long they compile.
quick_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
NUMPY_MODES = {'zero': 'constant', 'reflect': 'reflect', 'edge': 'edge'}


def image_of(*shape, dtype=np.float32):
  """An image whose values are all different, none of them 0."""
  return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)


def views(augment, key, image, count):
  """The views under so many keys, [count, H, W, C]; eager and jitted agree."""
  keys = jax.random.split(key, count)
  seen = np.asarray(quick_jit(jax.vmap(augment, (0, None)))(keys, image))
  np.testing.assert_array_equal(augment(keys[1], image), seen[1])
  return seen


def crops(image, rows, columns, mode):
  """All crops of the padded image, by numpy."""
  height, width, _ = image.shape
  margins = (rows, rows), (columns, columns), (0, 0)
  padded = np.pad(image, margins, mode=NUMPY_MODES[mode])
  return [
    padded[row : row + height, column : column + width]
    for row in range(2 * rows + 1)
    for column in range(2 * columns + 1)
  ]


def mirrored(images):
  """Each of the images, and each seen in a mirror."""
  return [*images, *(image[:, ::-1] for image in images)]


def holes(image, size):
  """The image without a square around each of its pixels, by numpy."""
  height, width, _ = image.shape
  found = []
  for row, column in np.ndindex(height, width):
    top, left = row - size // 2, column - size // 2
    found.append(image.copy())
    found[-1][max(top, 0) : top + size, max(left, 0) : left + size] = 0
  return found


COLOUR, GREY = image_of(5, 7, 3), image_of(8, 4, 1, dtype=np.uint8)
# name -> (augmentation, image, all its views, each as likely as the others).
LAWS = {
  'pad_and_crop': (
    pad_and_crop(2),
    COLOUR,
    crops(COLOUR, 2, 2, 'zero'),
  ),
  'pad_and_crop, reflect': (
    pad_and_crop(2, 'reflect'),
    GREY,
    crops(GREY, 2, 2, 'reflect'),
  ),
  'shift': (shift(0.3), COLOUR, crops(COLOUR, 1, 2, 'edge')),
  'shift along one side': (
    shift(0.2, 'zero'),
    GREY,
    crops(GREY, 1, 0, 'zero'),
  ),
  'flip': (flip(), COLOUR, mirrored([COLOUR])),
  'cutout, even': (cutout(2), COLOUR, holes(COLOUR, 2)),
  'cutout, odd': (cutout(3), GREY, holes(GREY, 3)),
  'compose': (
    compose(pad_and_crop(1), flip()),
    COLOUR,
    mirrored(crops(COLOUR, 1, 1, 'zero')),
  ),
}


def counts_of(seen, expected):
  """How often each of the expected views was seen; any other is a KeyError."""
  places = {view.tobytes(): place for place, view in enumerate(expected)}
  assert len(places) == len(expected)
  return np.bincount(
    [places[view.tobytes()] for view in seen], minlength=len(expected)
  )


@pytest.mark.parametrize('name', LAWS)
def test_views_are_those_of_numpy_each_equally_likely(name, key):
  """Every view is one of the reference's, by chi-square at the .001 level."""
  augment, image, expected = LAWS[name]
  seen = views(augment, key, image, 200 * len(expected))
  assert seen.dtype == image.dtype
  assert stats.chisquare(counts_of(seen, expected)).pvalue > 1e-3


def test_flips_keep_their_probability(key):
  """Within 4 standard deviations; 0 never and 1 always. It may be traced."""
  count = 10_000

  def flipped(probability):
    keys = jax.random.split(key, count)
    return jax.vmap(flip(probability), (0, None))(keys, COLOUR)

  probabilities = np.asarray([0.0, 0.1, 1.0], np.float32)
  seen = np.asarray(quick_jit(jax.vmap(flipped))(probabilities))
  flips = [counts_of(s, mirrored([COLOUR]))[1] for s in seen]
  deviations = np.sqrt(count * probabilities * (1 - probabilities))
  assert (abs(flips - count * probabilities) <= 4 * deviations).all()


def test_the_cutout_of_the_paper_has_its_area(key):
  """16 of 32: 256 pixels less what falls outside, 12.5 rows on average."""
  seen = views(cutout(16), key, image_of(32, 32, 1), 4000)
  area = (seen == 0).sum((1, 2, 3))
  # min(c + 8, 32) - max(c - 8, 0) rows around row c.
  rows = np.minimum(np.arange(32) + 8, 32) - np.maximum(np.arange(32) - 8, 0)
  law = np.outer(rows, rows)
  assert (area.min(), area.max()) == (law.min(), law.max()) == (64, 256)
  assert abs(area.mean() - law.mean()) < 4 * law.std() / np.sqrt(4000)


def test_a_cutout_may_cover_all(key):
  """A square of twice the image's sides leaves nothing of it."""
  assert not cutout(14)(key, COLOUR).any()


def test_parts_of_a_composition_have_keys_of_their_own(key):
  """Two flips cancel half the time, not always; the parts go in order."""
  seen = views(compose(flip(), flip()), key, COLOUR, 4000)
  mirrored_share = counts_of(seen, mirrored([COLOUR]))[1] / 4000
  assert abs(mirrored_share - 1 / 2) < 4 * np.sqrt(1 / 4 / 4000)
  doubled = compose(lambda key, x: x + 1, lambda key, x: 2 * x)(key, COLOUR)
  np.testing.assert_array_equal(doubled, 2 * (COLOUR + 1))
  np.testing.assert_array_equal(compose()(key, COLOUR), COLOUR)


@pytest.mark.parametrize('name', LAWS)
@pytest.mark.parametrize('dtype', ['uint8', 'bfloat16', 'bool'])
def test_shape_and_dtype_are_kept(name, dtype):
  """Of grey and colour images, square or not."""
  for shape in ((8, 8, 1), (9, 6, 3)):
    image = jax.ShapeDtypeStruct(shape, dtype)
    view = jax.eval_shape(LAWS[name][0], jax.random.key(0), image)
    assert (view.shape, view.dtype) == (image.shape, image.dtype)


def test_limited_views_are_an_examples_own(key):
  """At most V each, all as likely, and the same under all keys.

  They are views of the augmentation, and others of another example.
  """
  places = crops(COLOUR, 2, 2, 'zero')
  limited = jax.vmap(limit_views(pad_and_crop(2), 4), (0, None, None))
  of_examples = quick_jit(jax.vmap(limited, (0, None, 0)))

  def counted(keys):
    seen = np.asarray(of_examples(keys, COLOUR, jnp.arange(100)))
    return np.array([counts_of(views, places) for views in seen])

  counts, again = map(counted, jax.random.split(key, (2, 100, 60)))
  np.testing.assert_array_equal(counts > 0, again > 0)
  sizes = (counts > 0).sum(1)
  assert sizes.max() == 4
  chance = np.prod(1 - np.arange(4) / 25)  # that 4 of 25 places are different
  deviation = np.sqrt(chance * (1 - chance) / 100)
  assert abs((sizes == 4).mean() - chance) < 4 * deviation
  assert len(np.unique(counts > 0, axis=0)) > 90
  full = counts[sizes == 4]
  draws = full[full > 0]  # 60 of each example, so 3 degrees of freedom
  assert stats.chisquare(draws, ddof=len(full) - 1).pvalue > 1e-3


def test_one_view_each_is_as_random_as_the_views(key):
  """Over the examples by chi-square; of one it is the same whatever the key."""
  places = crops(COLOUR, 2, 2, 'zero')
  once = jax.vmap(limit_views(pad_and_crop(2), 1), (0, None, 0))
  keys = jax.random.split(key, (2, 5000))
  seen, again = (once(k, COLOUR, jnp.arange(5000)) for k in keys)
  np.testing.assert_array_equal(seen, again)
  assert stats.chisquare(counts_of(np.asarray(seen), places)).pvalue > 1e-3


def test_sometimes_keeps_its_chance_and_the_views(key):
  """Within 4 standard deviations; 0 never and 1 always. Which view it is does
  not depend on the choice: half of the chosen are mirrored.
  """

  def seen_with(augment, chance, count):
    def told(key, image):
      return sometimes(augment)(key, image, jnp.float32(chance))

    return views(told, key, COLOUR, count)

  for chance in (0.0, 0.3, 1.0):
    seen = seen_with(flip(), chance, 10_000)
    share = counts_of(seen, mirrored([COLOUR]))[1] / 10_000
    deviation = np.sqrt(chance / 2 * (1 - chance / 2) / 10_000)
    assert abs(share - chance / 2) <= 4 * deviation
  always = seen_with(flip(1.0), 1.0, 100)
  assert counts_of(always, mirrored([COLOUR]))[1] == 100


def test_a_raw_key_is_a_key(key):
  """The words of a key and the key itself give the same view."""
  augment = LAWS['compose'][0]
  np.testing.assert_array_equal(
    augment(jax.random.key_data(key), COLOUR), augment(key, COLOUR)
  )


@pytest.mark.parametrize(
  ('factory', 'options', 'message'),
  [
    (pad_and_crop, {'padding': 0}, 'padding must be an integer'),
    (pad_and_crop, {'padding': 1.5}, 'padding must be an integer'),
    (pad_and_crop, {'mode': 'wrap'}, "mode must be one of 'zero', 'refl"),
    (shift, {'fraction': 0.0}, 'fraction must be positive; got 0.0'),
    (shift, {'fraction': 1}, r'fraction must be in \[0, 1\); got 1'),
    (shift, {'fraction': 0.1, 'mode': ''}, 'mode must be one of'),
    (flip, {'probability': 1.5}, r'probability must be in \[0, 1\]; got 1.5'),
    (cutout, {'size': 0}, 'size must be an integer of at least 1; got 0'),
    (
      limit_views,
      {'augment': flip(), 'num_views': 0},
      'num_views must be an integer of at least 1; got 0',
    ),
  ],
)
def test_bad_options_are_refused(factory, options, message):
  """When the augmentation is made, before any image."""
  with pytest.raises(ValueError, match=message):
    factory(**options)


@pytest.mark.parametrize(
  'augment', [pad_and_crop(1), shift(0.5), flip(), cutout(1)]
)
def test_a_batch_is_no_image(augment, key):
  """Nor is an image without channels; both say what an image is."""
  for shape in ((2, 5, 7, 3), (5, 7)):
    with pytest.raises(ValueError, match=r'image must be one .* got shape \('):
      augment(key, jnp.zeros(shape))


def test_an_image_can_be_too_small(key):
  """For its padding, or for any shift."""
  with pytest.raises(ValueError, match='padding must be less .* 5 x 7; got 5'):
    pad_and_crop(5)(key, COLOUR)
  with pytest.raises(ValueError, match='fraction must be at least .* got 0.1'):
    shift(0.1)(key, COLOUR)


NUM_IMAGES, POOL, BATCH = 3, 12, 4


def recording_step(seen, augment):
  """A step that always scores, and notes all inputs by train and step."""

  def apply_fn(params, model_state, inputs, *, train, rngs):
    del rngs
    jax.debug.callback(lambda x: seen.update({train: np.array(x)}), inputs)
    pixels = inputs.reshape(inputs.shape[0], -1)
    return pixels @ params['kernel'], model_state

  loss_fn = optax.softmax_cross_entropy_with_integer_labels
  sampler = presample(NUM_IMAGES, BATCH, pool_size=POOL, tau_threshold=0.0)
  tx = importance_weighted(optax.sgd(0.1), NUM_IMAGES)
  step = make_train_step(
    apply_fn,
    loss_fn,
    sampler,
    tx,
    score=scores.logit_gradient_norm(loss_fn),
    preprocess=data.rescale(512),
    augment=augment,
  )
  params = {'kernel': jnp.zeros((6 * 8, 2))}
  return step, init_train_state(jax.random.key(0), params, {}, sampler, tx)


def slots_of(rows, pool):
  """The one slot of the pool that each row was."""
  same = (rows[:, None] == pool[None]).all((2, 3, 4))
  np.testing.assert_array_equal(same.sum(1), 1)
  return same.argmax(1)


def test_the_training_pass_sees_the_views_that_were_scored():
  """And slots with the same image have views of their own, which depend on run
  key, step and slot alone: the same in halves and with other parameters.
  """
  first_image = image_of(6, 8, 1, dtype=np.int32)
  images = np.stack([first_image + 100 * i for i in range(NUM_IMAGES)])
  batch = Batch(jnp.asarray(images), jnp.zeros((NUM_IMAGES,), jnp.int32))
  seen = {}
  augment = compose(pad_and_crop(4), flip(), cutout(2))
  step, state = recording_step(seen, augment)
  whole = quick_jit(step)

  @quick_jit
  def in_halves(state, batch):
    proposal, state = step.propose(state, state.step)
    rows = take(batch, proposal.indices)
    state, metrics = step.train(state, proposal, rows)
    return state, metrics | {'indices': proposal.indices}

  def inputs_of(run, state):
    """What is scored, what is trained on, and what the step returns."""
    results = jax.block_until_ready(run(state, batch))
    jax.effects_barrier()
    return seen[False], seen[True], results

  pool, trained, (next_state, _) = inputs_of(whole, state)
  # Twelve slots of three images, so that one is there four times at least.
  assert len(np.unique(pool, axis=0)) == POOL
  assert len(set(slots_of(trained, pool))) > 1

  pool_in_halves, trained_in_halves, (_, metrics) = inputs_of(in_halves, state)
  np.testing.assert_array_equal(pool_in_halves, pool)
  np.testing.assert_array_equal(trained_in_halves, trained)
  for view, index in zip(pool, metrics['indices'], strict=True):
    assert np.isin(512 * view[view > 0], images[index]).all()

  kernel = jax.random.normal(jax.random.key(1), (6 * 8, 2))
  other = state._replace(params={'kernel': kernel})
  other_pool, other_trained, _ = inputs_of(whole, other)
  np.testing.assert_array_equal(other_pool, pool)
  slots_of(other_trained, pool)

  next_pool, next_trained, _ = inputs_of(whole, next_state)
  assert not (next_pool == pool).all((1, 2, 3)).any()
  slots_of(next_trained, next_pool)


@functools.partial(quick_jit, static_argnums=3)
def mixed_both_ways(key, inputs, targets, num_classes):
  """Mixtures by labels and by the distributions that these stand for."""
  soft = jax.nn.one_hot(targets, num_classes)
  return tuple(
    mixup(key, inputs, chosen, num_classes, 0.5) for chosen in (targets, soft)
  )


def test_mixup_mixes_neighbours_with_one_share(key):
  """Inputs and targets of x_k and x_(k+1) by the same lambda_k, in [0, 1]."""
  inputs = jax.random.normal(key, (3, 2, 4))
  targets = jnp.asarray([2, 0, 1], jnp.int32)
  soft = jax.nn.one_hot(targets, 3)
  for mixed, mixed_targets in mixed_both_ways(key, inputs, targets, 3):
    share = np.asarray(mixed_targets)[np.arange(3), targets]
    assert ((share >= 0) & (share <= 1)).all()
    assert len(set(share)) == 3
    for values, result in ((inputs, mixed), (soft, mixed_targets)):
      values = np.asarray(values, np.float64)
      by = share.reshape(-1, *(1,) * (values.ndim - 1))
      expected = by * values + (1 - by) * values[[1, 2, 0]]
      np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('alpha', [0.5, 1.0])
def test_mixup_shares_follow_the_beta_law(alpha, key):
  """By Kolmogorov and Smirnov at the .001 level."""
  inputs = jnp.arange(10_000, dtype=jnp.float32) % 2
  targets = jnp.zeros((10_000,), jnp.int32)
  mixed, _ = quick_jit(mixup, static_argnums=3)(key, inputs, targets, 1, alpha)
  shares = np.where(inputs == 1, mixed, 1 - mixed)
  assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_pairs_weighted_by_both_weights_are_unbiased(key):
  """Over all ordered pairs, exactly; by the first weight alone partners follow
  the law of the draws.
  """
  x = np.asarray([1.0, -2.0, 5.0], np.float32)
  p = np.asarray([0.6, 0.3, 0.1])
  weights = 1 / (3 * p)
  pairs = list(itertools.product(range(3), repeat=2))

  def values(i, j):
    """Of the mixture of i and j: its square, then its soft target."""
    inputs = jnp.broadcast_to(x[[i, j, i], None, None], (3, 2, 4))
    labels = jnp.asarray([i, j, i], jnp.int32)
    (inputs, targets), _ = mixed_both_ways(key, inputs, labels, 3)
    return np.asarray([inputs[0, 0, 0] ** 2, *targets[0]], np.float64)

  table = {pair: values(*pair) for pair in pairs}

  def expectation(weight):
    return sum(p[i] * p[j] * weight(i, j) * table[i, j] for i, j in pairs)

  both = expectation(lambda i, j: weights[i] * weights[j])
  np.testing.assert_allclose(both, sum(table.values()) / 9, rtol=1e-12)
  share = table[0, 1][1]
  first = expectation(lambda i, j: weights[i])
  np.testing.assert_allclose(first[1:], share / 3 + (1 - share) * p, rtol=1e-6)


def test_mixup_refuses_bad_arguments(key):
  """Stored pixels, an alpha without a law, targets of other classes."""
  inputs, targets = jnp.zeros((3, 2)), jnp.zeros((3,), jnp.int32)
  with pytest.raises(ValueError, match='inputs must be floats.* got uint8'):
    mixup(key, inputs.astype(jnp.uint8), targets, 3)
  for alpha in (0.0, np.inf, np.nan):
    with pytest.raises(ValueError, match='alpha must be .* got'):
      mixup(key, inputs, targets, 3, alpha)
  with pytest.raises(ValueError, match='num_classes must be'):
    mixup(key, inputs, targets, 0)
  with pytest.raises(
    ValueError, match=r'target of one example .* float32\[4\]'
  ):
    mixup(key, inputs, jnp.zeros((3, 4)), 3)
