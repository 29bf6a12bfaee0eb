"""The benchmark of augmentation: what it times, and its table."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import augment, timing


def test_the_target_is_that_of_the_issue():
  """At most 3 % of a training step of a small ResNet on images of CIFAR."""
  targets = augment.TARGETS
  assert targets == {'WRN-16-1': timing.Target('<=', 0.03)}
  assert list(augment.NETWORKS) == ['MLP 256-256 on 32x32x3', 'WRN-16-1']
  for network in augment.NETWORKS.values():
    assert network.batch_size == augment.BATCH_SIZE
    assert network.shape == (32, 32, 3)


def test_each_slot_has_a_key_of_its_own(key):
  """Slot s is seen through fold_in(key, s), as in the step."""
  images = jax.random.normal(key, (3, 6, 6, 1))
  both = augment.AUGMENTS['pad and crop, flip']
  views = augment.mapped(both)(key, images)
  for slot in range(3):
    expected = both(jax.random.fold_in(key, slot), images[slot])
    np.testing.assert_array_equal(views[slot], expected)


def test_numpy_makes_the_same_views(key):
  """Both find all 162 views of an image, and no other."""
  image = np.arange(1, 76, dtype=np.float32).reshape(5, 5, 3)
  images = np.broadcast_to(image, (4000, *image.shape))
  both = augment.AUGMENTS['pad and crop, flip']
  ours = jax.jit(augment.mapped(both))(key, jnp.asarray(images))
  numpys = augment.by_numpy(np.random.default_rng(0), images)
  found, expected = (
    {view.tobytes() for view in np.asarray(views)} for views in (ours, numpys)
  )
  assert found == expected
  assert len(found) == 2 * 9**2


def test_shares_are_of_a_training_step():
  """In the table of shares 128 us of 12.8 ms are 1 us an image, and 1 %."""

  def of(seconds):
    return timing.Timing((timing.Seconds(seconds, seconds),))

  times = dict.fromkeys(augment.AUGMENTS, of(128e-6))
  times |= {'WRN-16-1': of(12.8e-3), 'MLP 256-256 on 32x32x3': of(2.56e-3)}
  times |= {'numpy': of(256e-6), 'flip': of(640e-6)}
  rows = augment.compare(times)
  text = augment.document(times, rows)
  assert '| pad and crop | 1.00 | 5.000% | 1.000% |' in text
  verdicts = {row.what: row.verdict for row in rows}
  assert verdicts['WRN-16-1: pad and crop / training step'] == 'yes'
  assert verdicts['WRN-16-1: flip / training step'] == 'no'
  assert verdicts['MLP 256-256 on 32x32x3: flip / training step'] == '-'
  assert rows[-1].ratios == (2, 2)
