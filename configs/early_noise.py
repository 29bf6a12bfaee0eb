"""What does early importance cost where labels are wrong?

Asks: claim (f) about the law of Quercia et al. (2023), SGD biased towards early
important samples, by what training under it comes to: an example whose label is
wrong looks important. 0, 10, 20 and 40 % of the training labels are flipped,
each to another class at random; the test labels are right. Uniform epochs
against the scores, all with the same number of updates and the same rate, since
rates are chosen by the training loss, that is by how well wrong labels are
learnt. configs/early_law.py has the laws' shares of wrong labels. An MLP on
3,000 images.

Found (5 seeds): without noise focal sampling is no better than uniform sampling
(17.2 against 17.0 % test error), and with it worse, by 2.5, 2.8 and 2.7 points
at 10, 20 and 40 %; its square by up to 9, and EL2N and forgetting like them:
they learn the wrong labels better, with a lower training loss for it (but for
forgetting). Confusion and the deviation gain where uniform sampling loses: 1.2,
1.8 and 3.8 points, and .8, 1.6 and 3.5; without noise .2, which is undecided
for the deviation.

Run: ./launch.sh configs/early_noise.py        (three minutes on one core)
Data: fashion_mnist.npz in ISJAX_DATA_DIR.
"""

from configs import early_convergence

# In each group, the row that the others are compared with.
BASELINE = 'uniform'
METRICS = ('test_error',)
CLAIMS = (
  (
    'focal sampling has a lower test error than uniform sampling',
    'focal',
    'uniform',
    'test_error',
  ),
  (
    'uniform sampling has a lower test error than focal sampling of power 2',
    'uniform',
    'focal, power 2',
    'test_error',
  ),
  (
    'sampling by the deviation has a lower test error than uniform sampling',
    'std',
    'uniform',
    'test_error',
  ),
  (
    'sampling by confusion has a lower test error than uniform sampling',
    'confusion',
    'uniform',
    'test_error',
  ),
  (
    'sampling by the deviation has a lower test error than focal sampling',
    'std',
    'focal',
    'test_error',
  ),
)
SCALES = {
  'smoke': early_convergence.DIGITS
  | {
    'sweep': {
      'num_examples': 1347,
      'shares': (0.2,),
      'num_seeds': 2,
      'cells': ('noise 20 %: uniform', 'noise 20 %: std'),
    }
  },
  'paper': early_convergence.CIFAR10
  | {
    'sweep': {
      'num_examples': 50_000,
      'shares': (0.0, 0.1, 0.2, 0.4),
      'num_seeds': 3,
      'cells': (),
    }
  },
}


def get_config():
  """All settings of a run; the defaults are those of a uniform cell."""
  config = early_convergence.get_config()
  config.name = 'early_noise'
  config.transformations = {'hold_out': {'share': 0.95}}
  config.optimizer.learning_rate = 0.05
  config.budget = 3 * 3000 * 30
  config.steps_per_call = 100
  config.num_evaluations = 10
  config.sweep = {
    'num_examples': 3000,
    'shares': (0.0, 0.1, 0.2, 0.4),  # of labels that are wrong
    'num_seeds': 5,
    'cells': (),
  }
  return config


def cells(config):
  """Every score, at every share of wrong labels."""
  num_examples = config['sweep']['num_examples']

  def early(**options):
    return early_convergence.early(config, num_examples, **options)

  ways = {
    BASELINE: {},
    'focal': early(),
    'focal, power 2': early(power=2.0),
    'confusion': early(score='confusion'),
    'std': early(score='std'),
    'EL2N': early(score='el2n'),
    'forgetting': early(score='forgetting'),
  }

  def noise(share):
    flips = {'symmetric_noise': {'share': share}} if share else {}
    return {'transformations': config['transformations'] | flips}

  return {
    f'noise {100 * share:.0f} %: {way}': noise(share) | changes
    for share in config['sweep']['shares']
    for way, changes in ways.items()
  }
