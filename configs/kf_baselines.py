"""Katharopoulos & Fleuret's sampling against its rivals, at equal cost.

Reproduces: the baselines of Katharopoulos & Fleuret (2018), section 4: uniform
sampling, the loss in place of the bound (the logit-gradient norm), prioritised
replay by Schaul et al. (2016) with alpha of .1, .5 and 1 and beta of .5 and 1,
and online batch selection by Loshchilov & Hutter (2016) with pressures of 1, 10
and 100. Here they are run on 6000 images of Fashion-MNIST at 14 x 14 pixels by
an MLP 128-128, and at the paper's scale on CIFAR-10 by WRN-28-2. Added are
uniform sampling with the batch that costs as much as a scored step, a memory of
the bound, which scores nothing, and the bound with half the correction. SVRG,
SCSG and Katyusha are left out.

Found (cpu scale, 5 seeds): the gate hardly opens (1 % of the steps): tau rises
to 2.25 and would have to exceed 2.31. So the gated cells end where uniform
sampling does, at a training loss of .143 and a test error of 14.5 %; without
the gate the bound ends at 1.43 times the loss, .58 points higher. A memory
scores nothing. By the bound it reaches uniform sampling's loss at .82
[.70, .97] of the cost, with an end that is undecided; by the loss, as
prioritised replay with the whole correction, it ends at 1.16 times the loss.
The three rivals that leave out half of the correction or all of it train to
.28, .36 and .15 times uniform sampling's loss in as many steps. They are biased
towards hard examples, and what they gain is by heart: their test errors are .26
to .30 points higher. In a pool half the correction gains nothing.

Run: ./launch.sh configs/kf_baselines.py        (four minutes on one core)
     ./launch.sh configs/kf_baselines.py:paper  (the paper's scale)
Data: fashion_mnist.npz, and at the paper's scale cifar10, in ISJAX_DATA_DIR.
"""

from configs import digits, kf_images

# The row that the others are compared with, seed by seed.
BASELINE = 'uniform'
TARGET = 'train_loss'
METRICS = ('train_loss', 'test_error', 'cost_to_target')
CLAIMS = (
  (
    'the gated bound trains to a lower loss than uniform sampling',
    'bound, gate',
    'uniform',
    'train_loss',
  ),
  (
    'the gated bound trains to a lower loss than the cost-equal uniform batch',
    'bound, gate',
    'uniform, cost-equal b',
    'train_loss',
  ),
  (
    'the gated bound trains to a lower loss than the gated loss',
    'bound, gate',
    'loss, gate',
    'train_loss',
  ),
  (
    'the gated bound trains to a lower loss than prioritised replay',
    'bound, gate',
    'Schaul et al., alpha 1, beta 1',
    'train_loss',
  ),
  (
    'the gated bound trains to a lower loss than online batch selection',
    'bound, gate',
    'Loshchilov & Hutter, pressure 100',
    'train_loss',
  ),
  (
    'the gated bound has a lower test error than uniform sampling',
    'bound, gate',
    'uniform',
    'test_error',
  ),
  (
    'a memory of the bound reaches the loss of uniform sampling at less cost',
    'memory of the bound',
    'uniform',
    'cost_to_target',
  ),
  (
    'half the correction trains to a lower loss than the whole, by one pool',
    'bound, always, exponent .5',
    'bound, always',
    'train_loss',
  ),
)
PAPER = {
  'uniform': 'error 8.7 % on CIFAR-10 [mem]',
  'bound, gate': 'error 7.9 % on CIFAR-10 [mem]',
}
_MOST_LOSS = 2.3  # of an untrained network with ten classes
SCALES = {
  'smoke': {
    'transformations': {
      'average_blocks': {'size': 4},
      'hold_out': {'share': 0.99},
    },
    'model.hidden': (8,),
    'budget': 3 * 32 * 100,
    'num_evaluations': 2,
    'sweep': {
      'learning_rates': (0.1,),
      'num_seeds': 1,
      'cells': ('uniform', 'Loshchilov & Hutter, pressure 10'),
    },
  },
  'paper': kf_images.PAPER_SCALE
  | {
    'data': 'cifar10',
    'sweep': {'learning_rates': (0.1,), 'num_seeds': 3, 'cells': ()},
  },
}


def get_config():
  """All settings of a run; the defaults are those of the gated bound."""
  config = digits.get_config()
  config.name = 'kf_baselines'
  config.data = 'fashion_mnist'
  config.transformations = {
    'average_blocks': {'size': 2},
    'hold_out': {'share': 0.9},
  }
  config.model.hidden = (128, 128)
  config.sampler.batch_size = 32
  config.sampler.pool_size = 160
  config.budget = 3 * 32 * 8000
  config.num_evaluations = 20
  config.sweep = {'learning_rates': (0.03, 0.1), 'num_seeds': 5, 'cells': ()}
  return config


def cells(config):
  """What each cell changes; sizes follow those of the config."""
  batch_size = config['sampler']['batch_size']
  equal_cost = round((config['sampler']['pool_size'] + 3 * batch_size) / 3)

  def memory(**options):
    return {'name': 'memory', 'batch_size': batch_size, **options}

  def replay(power, exponent):
    return {
      'sampler': memory(remember='loss', power=power, initial_score=_MOST_LOSS),
      'exponent': exponent,
    }

  def by_rank(pressure):
    return {
      'sampler': memory(
        remember='loss',
        pressure=pressure,
        rebuild_every=100,
        initial_score=100.0,  # first of all, those not seen yet
        mix=0.01,
      ),
      'exponent': 0.0,
    }

  return {
    BASELINE: {'sampler': {'name': 'uniform', 'batch_size': batch_size}},
    'uniform, cost-equal b': {
      'sampler': {'name': 'uniform', 'batch_size': equal_cost}
    },
    'bound, gate': {},
    'bound, always': {'sampler.tau_threshold': 0.0},
    'bound, always, exponent .5': {
      'sampler.tau_threshold': 0.0,
      'exponent': 0.5,
    },
    'loss, gate': {
      'draw_score': 'loss',
      'sampler.tau_from': 'batch',
      'sampler.mix': 0.1,
    },
    'memory of the bound': {'sampler': memory()},
    'Schaul et al., alpha 1, beta 1': replay(1.0, 1.0),
    'Schaul et al., alpha .5, beta .5': replay(0.5, 0.5),
    'Loshchilov & Hutter, pressure 10': by_rank(10.0),
    'Loshchilov & Hutter, pressure 100': by_rank(100.0),
  }
