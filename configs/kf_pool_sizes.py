"""How large a pool? An ablation over B / b, at equal cost.

Katharopoulos & Fleuret (2018) take pools of B = 5 b and name the trade-off: a
larger pool has more to choose from and costs more to score. Here B / b is 2, 3,
5, 8 and 12, on the digits by an MLP with b = 16, resampled at every step and
while tau breaks even, beside uniform sampling with b and with the batch that
costs as much as a scored step. At the scale 'paper' it is MNIST by an MLP
512-512 with b = 128.

Found (cpu scale, 10 seeds): no pool pays, and large ones cost most. Each at its
best rate, resampling at every step ends with 1.1, 1.0, 1.1, 1.6 and 3.5 times
the training loss of uniform sampling for B / b of 2, 3, 5, 8 and 12, and the
cost-equal uniform batch with 1.0, 1.0, 1.1, 1.1 and 1.8 times: a pool does as a
uniform batch of its cost does, or worse. Both make larger rates possible, and
both make fewer updates. At .06 pools of 2 b and 3 b end at .77 and .68 times
the loss of uniform sampling, at .1, where b = 16 is unstable (a loss of .046),
all pools at .012 to .058 times; but uniform sampling is best at .03. The gate
does not protect: it is open most of the time, since the variance breaks even,
but near a loss of 0 what is short is updates. Gated cells are ahead for a third
of the way; with a budget of 10 epochs and a decay of its own that is gone, too.

Run: ./launch.sh configs/kf_pool_sizes.py   (four minutes on one core)
"""

from configs import digits

# In each group, the row that the others are compared with.
BASELINE = 'uniform'
METRICS = ('train_loss', 'test_error')
CLAIMS = (
  (
    'resampling at every step trains to a lower loss than uniform sampling',
    'bound, always',
    'uniform',
    'train_loss',
  ),
  (
    'resampling while it breaks even trains to a lower loss than uniform '
    'sampling',
    'bound, gate',
    'uniform',
    'train_loss',
  ),
  (
    'resampling at every step trains to a lower loss than the '
    'cost-equal uniform batch',
    'bound, always',
    'uniform, cost-equal b',
    'train_loss',
  ),
  (
    'resampling while it breaks even has a lower test error than uniform '
    'sampling',
    'bound, gate',
    'uniform',
    'test_error',
  ),
)
SCALES = {
  'smoke': {
    'model.hidden': (8,),
    'budget': 1500,
    'steps_per_call': 5,
    'num_evaluations': 2,
    'sweep': {
      'pool_multiples': (3,),
      'learning_rates': (0.1,),
      'num_seeds': 2,
      'cells': ('B = 3 b: uniform', 'B = 3 b: bound, always'),
    },
  },
  'paper': {
    'data': 'mnist',
    'model.hidden': (512, 512),
    'sampler.batch_size': 128,
    'budget': 3 * 128 * 46_875,  # 100 epochs of uniform sampling
    'steps_per_call': 100,
    'sweep': {
      'pool_multiples': (2, 3, 5, 8, 12, 20),
      'learning_rates': (0.03, 0.1, 0.3),
      'num_seeds': 5,
      'cells': (),
    },
  },
}


def get_config():
  """All settings of a run; the defaults are those of a gated cell."""
  config = digits.get_config()
  config.name = 'kf_pool_sizes'
  config.budget = 160_000  # forward-equivalents: 40 epochs of uniform sampling
  config.num_evaluations = 20
  config.sweep = {
    'pool_multiples': (2, 3, 5, 8, 12),
    'learning_rates': (0.03, 0.06, 0.1),
    'num_seeds': 10,
    'cells': (),
  }
  return config


def cells(config):
  """Pools of every size, each with the batch that costs as much."""
  batch_size = config['sampler']['batch_size']

  def uniform(size):
    return {'sampler': {'name': 'uniform', 'batch_size': size}}

  def ways(multiple):
    pool = {'sampler.pool_size': multiple * batch_size}
    return {
      BASELINE: uniform(batch_size),
      'uniform, cost-equal b': uniform(round((multiple + 3) * batch_size / 3)),
      'bound, gate': pool,
      'bound, always': pool | {'sampler.tau_threshold': 0.0},
    }

  return {
    f'B = {multiple} b: {way}': changes
    for multiple in config['sweep']['pool_multiples']
    for way, changes in ways(multiple).items()
  }
