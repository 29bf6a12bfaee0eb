"""Does sampling by importance that was estimated early save iterations?

Asks: claim (a) of Quercia et al. (2023), SGD biased towards early important
samples, and (2025), Focal sampling: examples are shown more often, without
weights, in proportion to an importance that is taken once from the predictions
of a short ordinary warm-up, here the first tenth of the training; a network
then reaches the accuracy of uniform training in fewer iterations. Their
abstracts are all that is followed; none of their numbers is known here.

The control is shuffled epochs, each budget with its own full decay, so that a
shorter training is compared with a shorter training ("half the budget"). The
target is the test error at the end of the uniform run of the same seed. Among
the cells are the other scores, classes alone by their mass of importance with
their examples uniform, weights that take the bias away by half or in full, and
the precedents p-SGD and c-SGD (Chang et al. 2017), which go on learning the
scores and smooth them by their mean, uniform for as long as the warm-up lasts.
An MLP on 6,000 images.

Found (the better of two rates, 5 seeds): it does not. Focal sampling ends .28
[.04, .53] points above uniform training (15.4 against 15.1 % test error), and
no run of it gets to that accuracy; with half the budget of both the difference
is undecided. The bias is what costs: the same draws with exponent 1 end at
15.1 %, .33 points below. Undecided against uniform training are exponents 1 and
.5, confusion (15.3 %), p-SGD and c-SGD. Worse are class mass alone (15.4 %),
EL2N (15.6 %), the square (16.1 %), the deviation (16.2 %) and above all
forgetting (18.9 %), which never shows most examples again. The training loss of
focal sampling is .69 times that of uniform training, and with exponents .5 and
1 it is .77 and .89 times. A run that does not reach the target counts with all
its steps, so that the ratios of those with half the budget say nothing: see who
reached it.

Run: ./launch.sh configs/early_convergence.py    (four minutes on one core)
Data: fashion_mnist.npz in ISJAX_DATA_DIR.
"""

from configs import digits

# The row that the others are compared with, seed by seed.
BASELINE = 'uniform'
METRICS = ('train_loss', 'test_error', 'steps_to_target', 'seconds_to_target')
TARGET = 'test_error'
CLAIMS = (
  (
    'focal sampling reaches the accuracy of uniform training in fewer '
    'iterations',
    'focal',
    'uniform',
    'steps_to_target',
  ),
  (
    'focal sampling reaches the accuracy of uniform training in less time',
    'focal',
    'uniform',
    'seconds_to_target',
  ),
  (
    'focal sampling has a lower test error at the same number of iterations',
    'focal',
    'uniform',
    'test_error',
  ),
  (
    'focal sampling has a lower test error at half the number of iterations',
    'focal, half the budget',
    'uniform, half the budget',
    'test_error',
  ),
  (
    'focal sampling at half the number of iterations beats uniform training at '
    'all of them',
    'focal, half the budget',
    'uniform',
    'test_error',
  ),
  (
    'focal sampling has a lower test error than its unbiased form',
    'focal',
    'focal, exponent 1',
    'test_error',
  ),
  (
    'focal sampling has a lower test error than sampling by class alone',
    'focal',
    'class mass only',
    'test_error',
  ),
)
# What all configs of early importance change at the scale 'paper'.
CIFAR10 = {
  'data': 'cifar10',
  'transformations': {},
  'augmentations': {'pad_and_crop': {'padding': 4}, 'flip': {}},
  'model': {'name': 'cifar_resnet', 'depth': 32},
  'optimizer': {
    'name': 'sgd',
    'learning_rate': 0.1,
    'momentum': 0.9,
    'schedule': {'name': 'cosine'},
    'weight_decay': 5e-4,
  },
  'sampler': {'name': 'shuffle', 'batch_size': 128},
  'budget': 3 * 50_000 * 200,
  'num_evaluations': 100,
}
# ... and at the scale 'smoke'.
DIGITS = {
  'data': 'digits',
  'transformations': {},
  'model.hidden': (8,),
  'sampler.batch_size': 32,
  'budget': 3 * 1347 * 10,
  'steps_per_call': 10,
  'num_evaluations': 2,
}
SCALES = {
  'smoke': DIGITS
  | {
    'sweep': {
      'num_examples': 1347,
      'learning_rates': (0.1,),
      'num_seeds': 2,
      'cells': ('uniform', 'focal'),
    }
  },
  'paper': CIFAR10
  | {
    'sweep': {
      'num_examples': 50_000,
      'learning_rates': (0.05, 0.1),
      'num_seeds': 3,
      'cells': (),
    }
  },
}


def get_config():
  """All settings of a run; the defaults are those of a uniform cell."""
  config = digits.get_config()
  config.name = 'early_convergence'
  config.data = 'fashion_mnist'
  config.transformations = {'hold_out': {'share': 0.9}}  # to make it small
  config.model.hidden = (64, 64)
  config.sampler = {'name': 'shuffle', 'batch_size': 64}
  config.exponent = 0.0
  config.budget = 3 * 6000 * 20
  config.steps_per_call = 25
  config.num_evaluations = 20
  config.sweep = {
    'num_examples': 6000,
    'learning_rates': (0.03, 0.1),
    'num_seeds': 5,
    'cells': (),
  }
  return config


def early(config, num_examples, **options):
  """The changes of a cell that samples by early importance; warm-up 10 %."""
  epochs = config['budget'] / 3 / num_examples
  return {
    'sampler': {
      'name': 'early_importance',
      'batch_size': config['sampler']['batch_size'],
      'warmup_epochs': max(0.1 * epochs, 1.0),
      **options,
    }
  }


def cells(config):
  """Every way to sample."""
  num_examples = config['sweep']['num_examples']
  batch_size = config['sampler']['batch_size']
  half = {'budget': config['budget'] // 2}
  focal = early(config, num_examples)

  def learning(score):
    return {
      'sampler': {
        'name': 'memory',
        'batch_size': batch_size,
        'remember': score,
        'decay': 'mean',
        'mix': 0.5,
        'warmup_steps': config['budget'] // (30 * batch_size),
      }
    }

  return {
    BASELINE: {},
    'uniform, half the budget': half,
    'focal': focal,
    'focal, half the budget': early(config | half, num_examples) | half,
    'focal, power 2': early(config, num_examples, power=2.0),
    'confusion': early(config, num_examples, score='confusion'),
    'std': early(config, num_examples, score='std'),
    'EL2N': early(config, num_examples, score='el2n'),
    'forgetting': early(config, num_examples, score='forgetting'),
    'class mass only': early(config, num_examples, by='class'),
    'focal, exponent .5': focal | {'exponent': 0.5},
    'focal, exponent 1': focal | {'exponent': 1.0},
    'p-SGD': learning('p_sgd'),
    'c-SGD': learning('c_sgd'),
  }
