"""Images pixel by pixel by an LSTM: importance sampling at equal cost.

Reproduces: Katharopoulos & Fleuret (2018), figure 5. At the scale 'paper' it is
their setting: permuted MNIST, 784 pixels one by one, by an LSTM of 128 units,
Adam at 1e-3, gradients clipped at 1, batches of 32, pools of 128 while tau
exceeds 1.8 [mem]; the length, 50 epochs of uniform updates, is our choice. By
default it is 1500 images at 7 x 7 pixels by an LSTM of 32 units, Adam at 5e-3.

Found (cpu scale, 3 seeds): the one place among these configs where the pool
pays by its cost. The training set is learnt by heart at a constant rate, where
uniform sampling is held up by bursts of the loss. With the break-even gate,
open for 31 % of the steps, the bound reaches the end of uniform sampling at .66
[.57, .77] of its cost, and its own end has .061 [.004, .94] times the training
loss. Under their gate, open earlier, nothing is decided but that it is ahead of
the cost-equal batch (.34 times its loss). Test errors are alike, 21 to 22 %.
Seconds do not follow: on a CPU core, scoring a pool by the LSTM takes longer
than its count of forward passes says.

Run: ./launch.sh configs/kf_sequences.py        (five minutes on one core)
     ./launch.sh configs/kf_sequences.py:paper  (an accelerator)
Data: mnist.npz in ISJAX_DATA_DIR.
"""

from configs import digits

# The row that the others are compared with, seed by seed.
BASELINE = 'uniform'
TARGET = 'train_loss'
METRICS = ('train_loss', 'test_error', 'cost_to_target')
CLAIMS = (
  (
    'the bound trains to a lower loss than uniform sampling',
    'bound, their gate',
    'uniform',
    'train_loss',
  ),
  (
    'the bound trains to a lower loss than the cost-equal uniform batch',
    'bound, their gate',
    'uniform, cost-equal b',
    'train_loss',
  ),
  (
    'the bound trains to a lower loss than the loss as a score',
    'bound, their gate',
    'loss, their gate',
    'train_loss',
  ),
  (
    'the bound has a lower test error than uniform sampling',
    'bound, their gate',
    'uniform',
    'test_error',
  ),
  (
    'the break-even gate trains to a lower loss than theirs',
    'bound, break-even gate',
    'bound, their gate',
    'train_loss',
  ),
)
SCALES = {
  'smoke': {
    'transformations': {
      'average_blocks': {'size': 7},
      'permute_pixels': {},
      'hold_out': {'share': 0.99},
    },
    'model.hidden': 8,
    'budget': 3 * 32 * 40,
    'steps_per_call': 10,
    'num_evaluations': 2,
    'sweep': {'num_seeds': 1, 'cells': ('uniform', 'bound, their gate')},
  },
  'paper': {
    'transformations': {'permute_pixels': {}},
    'model.hidden': 128,
    'optimizer.learning_rate': 1e-3,
    'budget': 3 * 32 * 93_750,  # 50 epochs of uniform sampling
    'num_evaluations': 50,
    'sweep': {'num_seeds': 3, 'cells': ()},
  },
}


def get_config():
  """All settings of a run; the defaults are those of the gated bound."""
  config = digits.get_config()
  config.name = 'kf_sequences'
  config.data = 'mnist'
  config.transformations = {
    'average_blocks': {'size': 4},
    'permute_pixels': {},
    'hold_out': {'share': 0.975},
  }
  config.model = {'name': 'lstm', 'hidden': 32}
  config.optimizer = {
    'name': 'adam',
    'learning_rate': 5e-3,
    'schedule': {'name': 'constant'},
    'clip_norm': 1.0,
  }
  config.sampler = {
    'name': 'presample',
    'batch_size': 32,
    'pool_size': 128,
    'tau_threshold': 1.8,
    'tau_from': 'pool',
    'mix': 0.0,
  }
  config.budget = 3 * 32 * 9000
  config.steps_per_call = 100
  config.num_evaluations = 15
  config.sweep = {'num_seeds': 3, 'cells': ()}
  return config


def cells(config):
  """What each cell changes; sizes follow those of the config."""
  batch_size = config['sampler']['batch_size']
  equal_cost = round((config['sampler']['pool_size'] + 3 * batch_size) / 3)
  return {
    BASELINE: {'sampler': {'name': 'uniform', 'batch_size': batch_size}},
    'uniform, cost-equal b': {
      'sampler': {'name': 'uniform', 'batch_size': equal_cost}
    },
    'bound, their gate': {},
    'bound, break-even gate': {
      'sampler.tau_threshold': 'break_even',
      'sampler.mix': 0.1,
    },
    'loss, their gate': {
      'draw_score': 'loss',
      'sampler.tau_from': 'batch',
      'sampler.mix': 0.1,
    },
  }
