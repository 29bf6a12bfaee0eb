"""components.py: what a config's words become, and what wrong ones say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from experiments import components
from experiments.program import Program
from experiments.settings import SettingsError
from isjax import losses
from isjax.data import standardise
from isjax.data.metadata import assemble
from isjax.samplers import early_importance
from isjax.transforms import PerExample

COUNTS = np.array([40, 8, 2])
LABELS = jnp.array([0, 1, 2, 0])
LOSSES = jnp.array([0.1, 2.0, 3.0, 0.5])


@pytest.fixture
def metadata():
  """Of a training set with three classes of different sizes."""
  labels = np.repeat(np.arange(3), COUNTS)
  inputs = np.zeros((50, 2), np.float32)
  return assemble(
    'made up', 'train', inputs, labels, num_classes=3, max_value=None
  )[1]


def config(**changes):
  return digits.get_config().to_dict() | changes


def weights_of(settings, metadata, progress):
  """What the chain multiplies the gradients by, at a constant rate of 1."""
  settings = settings | {
    'optimizer': {
      'name': 'sgd',
      'schedule': {'name': 'constant'},
      'learning_rate': 0,
    }
  }
  tx = components.transform(settings, 1.0, metadata)
  params = jnp.zeros(4)
  per_example = PerExample.from_stacked(LOSSES, jnp.eye(4))
  update, _ = tx.update(
    per_example,
    tx.init(params),
    params,
    probabilities=jnp.full(4, 1 / 50),
    targets=LABELS,
    progress=jnp.float32(progress),
  )
  return -4 * update


def test_class_weights_begin_at_their_share_of_the_budget(metadata):
  """Ones before it; then 1/n, with a mean of 1 over the examples."""
  settings = config(class_weights={'name': 'inverse_frequency', 'start': 0.8})
  by_class = (50 / 3) / COUNTS
  np.testing.assert_allclose(weights_of(settings, metadata, 0.79), 1, rtol=1e-6)
  np.testing.assert_allclose(
    weights_of(settings, metadata, 0.8), by_class[LABELS], rtol=1e-6
  )


def test_weight_decay_is_no_part_of_the_weighted_loss(metadata):
  """The parameters themselves enter the update, whatever the weights."""
  optimizer = {
    'name': 'sgd',
    'schedule': {'name': 'constant'},
    'weight_decay': 0.01,
  }
  tx = components.transform(config(optimizer=optimizer), 1.0, metadata)
  params = jnp.array([1.0, -2.0, 3.0, 0.0])
  update, _ = tx.update(
    PerExample.from_stacked(LOSSES, jnp.zeros((4, 4))),
    tx.init(params),
    params,
    probabilities=jnp.array([0.5, 0.1, 0.1, 0.1]),
    targets=LABELS,
    progress=jnp.float32(0),
  )
  np.testing.assert_allclose(update, -0.01 * params, rtol=1e-6)


@pytest.mark.parametrize(
  ('robust', 'expected'),
  [
    ({'name': 'absgd', 'temperature': 2.0, 'decay': 0.0}, np.exp(LOSSES / 2)),
    ({'name': 'cvar', 'share': 0.25}, [0, 0, 4, 0]),
    (  # level: the mean loss less the temperature, all losses above it
      {'name': 'chi_square', 'temperature': 10.0},
      LOSSES - jnp.mean(LOSSES) + 10,
    ),
  ],
  ids=lambda value: value['name'] if isinstance(value, dict) else '',
)
def test_robust_weights_begin_at_their_share_of_the_budget(
  metadata, robust, expected
):
  """Plain averages before it; then weights in proportion to the formula."""
  settings = config(robust=robust | {'start': 0.5})
  np.testing.assert_allclose(weights_of(settings, metadata, 0.4), 1, rtol=1e-6)
  expected = np.asarray(expected) / np.mean(expected)
  actual = weights_of(settings, metadata, 0.6)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_loss_knows_the_classes_of_the_training_set(metadata):
  """Counts come from the data, the other parameters from the config."""
  loss_fn = components.loss_fn({'name': 'ldam', 'scale': 10.0}, metadata)
  own = losses.ldam(COUNTS, scale=10.0)
  logits = jnp.array([0.3, -0.2, 0.9])
  for label in range(3):
    assert loss_fn(logits, jnp.int32(label)) == own(logits, jnp.int32(label))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'loss': {'name': 'focal', 'alpha': 1}}, 'loss.alpha is no option of foc'),
    ({'loss': {'name': 'focal', 'gamma': -1.0}}, 'loss: gamma must be non-neg'),
    ({'robust': {'name': 'cvar', 'share': 2.0}}, 'robust: share must be in'),
    ({'robust': {'name': 'absgd', 'temperature': 0.0}}, 'temperature'),
    ({'robust': {'name': 'absgd'}}, 'robust.temperature is missing'),
    ({'augmentations': {'blur': {}}}, 'augmentations must be one of cutout'),
    ({'augmentations': {'flip': {'p': 1}}}, 'flip.p is no option of flip'),
    (
      {'augmentations': {'flip': {}, 'limit_views': {'num_views': 0}}},
      'limit_views: num_views must be an integer',
    ),
    (
      {'augmentations': {'flip': {}, 'sometimes': {'chance': 2.0}}},
      r'sometimes: chance must be in \[0, 1\]; got 2.0',
    ),
    (
      {'augmentations': {'flip': {}, 'sometimes': {'chance': 'age'}}},
      "chance must be one of rank, reverse_rank; got 'age'",
    ),
    (
      {
        'augmentations': {
          'sometimes': {'chance': 0.5},
          'limit_views': {'num_views': 2},
        }
      },
      'augmentations may have one of limit_views, sometimes',
    ),
    ({'transformations': {'shuffle': {}}}, 'data: transformation must be one'),
  ],
)
def test_bad_settings_are_named(changes, message):
  """Before anything is compiled."""
  with pytest.raises(SettingsError, match=message):
    Program(config(**changes))


RANKED = {
  'name': 'early_importance',
  'batch_size': 8,
  'warmup_epochs': 1,
  'ranked': True,
}


@pytest.mark.parametrize(
  ('choice', 'told'),
  [
    ({'limit_views': {'num_views': 3}}, [5, 0, 1]),
    ({'sometimes': {'chance': 0.25}}, [0.25] * 3),
    ({'sometimes': {'chance': 'rank'}}, [0.5, 0.1, 0.2]),
    ({'sometimes': {'chance': 'reverse_rank'}}, [0.5, 0.9, 0.8]),
    ({}, None),
  ],
)
def test_choices_of_views_go_by_what_they_say(choice, told, key):
  """What they tell of examples, and views that are those of the others."""
  sampler = early_importance(10, 5, warmup_epochs=1, ranked=True)
  state = sampler.init(key)
  ranks = jnp.array([0.1, 0.2, 0.0, 0.0, 0.0, 0.5, 0.9, 0.9, 0.9, 0.9])
  state = state._replace(ranks=ranks)
  made, by = components.augmentation({**choice, 'flip': {'probability': 1.0}})
  image = jnp.arange(6.0).reshape(1, 3, 2)
  if told is None:
    assert by is None
    np.testing.assert_array_equal(made(key, image), image[:, ::-1])
    return
  values = by(state, jnp.array([5, 0, 1]))
  np.testing.assert_allclose(values, told, rtol=1e-6)
  keys = jax.random.split(key, 200)
  views = jax.vmap(made, (0, None, None))(keys, image, values[1])
  mirrored, plain = (
    (np.asarray(views) == np.asarray(view)).all((1, 2, 3))
    for view in (image[:, ::-1], image)
  )
  assert (mirrored | plain).all()
  share = 1.0 if 'limit_views' in choice else told[1]
  assert abs(mirrored.mean() - share) <= 4 * np.sqrt(share * (1 - share) / 200)


def test_features_are_standardised_by_the_training_set(key):
  """Mean 0, deviation 1; a constant feature is centred and stays finite."""
  train = 3 + 5 * jax.random.normal(key, (200, 3))
  train = train.at[:, 2].set(7.0)
  for scale in (standardise(train), jax.jit(standardise(train))):
    scaled = scale(train)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[:, :2].std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(scale(train[:1]), scaled[:1], rtol=1e-6)
    assert (scaled[:, 2] == 0).all()


@pytest.mark.parametrize(
  'changes',
  [
    {'loss': {'name': 'balanced_softmax'}, 'data': 'features/ring'},
    {'sampler': {'name': 'memory', 'batch_size': 8, 'remember': 'p_sgd'}},
    {
      'class_weights': {'name': 'effective_number', 'start': 0.8},
      'robust': {'name': 'absgd', 'temperature': 5.0, 'start': 0.8},
    },
    {'transformations': {'long_tail': {'factor': 0.1}}},
    {'augmentations': {'pad_and_crop': {'padding': 1}, 'flip': {}}},
    {
      'sampler': RANKED,
      'augmentations': {'flip': {}, 'sometimes': {'chance': 'rank'}},
    },
  ],
  ids=(
    'features',
    'p-SGD',
    'two stages',
    'transformations',
    'augmentations',
    'strength by rank',
  ),
)
def test_a_program_is_made_of_any_parts(changes, monkeypatch, tmp_path, key):
  """The step is traced: shapes fit, statistics and progress are there."""
  features = np.asarray(jax.random.normal(key, (40, 3)), np.float32)
  labels = np.arange(40) % 4
  np.savez(tmp_path / 'features.npz', ring_x=features, ring_y=labels)
  monkeypatch.setenv('ISJAX_DATA_DIR', str(tmp_path))
  program = Program(config(**changes))
  state, metrics = jax.eval_shape(
    program._step(0.1, 1000), jax.eval_shape(program.init, 0), program.train_set
  )
  assert {'error', 'label_probability'} < metrics.keys()
  if 'transformations' in changes:
    assert program.metadata.num_examples < 700
    assert program.test_set.targets.shape == (450,)
  assert state.step.shape == ()
