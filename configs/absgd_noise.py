"""Wrong labels: does a negative temperature of ABSGD leave them unlearnt?

Asked of Qi et al. (2020), arXiv:2012.06951, whose lambda < 0 is meant for label
noise: an example is weighted by exp(loss / lambda) / u, and the losses of wrong
labels are large. 0, 20 or 40 % of the labels are wrong, all others equally
likely. Robust weights begin after a tenth of the budget, but for one cell.
Rivals: stopping early, which costs a quarter; label smoothing; focal loss; and
chi-square weights of negative temperature, which fall linearly with the loss
and are 0 above some level.

At the scale cpu: an MLP 64-64-64 on the digits and on 3000 images of
Fashion-MNIST at 14 x 14 pixels, 60 epochs, batches of 64, rate .03 with a
cosine. At the scale paper: ResNet-32 on CIFAR-10, 200 epochs; the settings are
those of the long tail, for the paper's own of this part are not known here.

Found (cpu, 10 seeds): with 40 % of wrong labels ABSGD -1 lowers the test error
from 9.7 to 4.0 % on the digits and from 24.4 to 20.8 % on Fashion-MNIST, below
stopping early (5.8, 22.8 %) and label smoothing (6.8, 23.3 %). Lambda -2 gains
less, -.5 is erratic. At 20 % it gains 1.9 of 5.2 points, .7 more than stopping
early and as much as label smoothing or chi-square weights; without noise it
costs .36 [.06, .65]. It needs the warm-up: from the start it ends at 21 %
without any noise. Chi-square weights do as well at 20 % and are erratic at
40 %. Lambda 5 and focal loss, which favour large losses, cost .6 to 1.5 points
under noise. Importance sampling in every step draws just the examples that
lambda < 0 ignores, at 3/8 of the updates: 14.6 % on the digits at 40 %.

Run: ./launch.sh configs/absgd_noise.py         (four minutes on one core)
     ./launch.sh configs/absgd_noise.py:paper   (for an accelerator)
Data: fashion_mnist.npz in ISJAX_DATA_DIR; cifar10 for the larger scale.
"""

from configs import digits

# In each group, the row that the others are compared with.
BASELINE = 'CE'
METRICS = ('test_error',)
CLAIMS = (
  (
    'ABSGD with lambda < 0 is better than the cross entropy',
    'ABSGD -1',
    'CE',
    'test_error',
  ),
  (
    'ABSGD with lambda < 0 is better than stopping early',
    'ABSGD -1',
    'CE, a quarter of the budget',
    'test_error',
  ),
  (
    'ABSGD with lambda < 0 is better than label smoothing',
    'ABSGD -1',
    'label smoothing 0.1',
    'test_error',
  ),
  (
    'ABSGD with lambda < 0 is better after a warm-up',
    'ABSGD -1',
    'ABSGD -1, from the start',
    'test_error',
  ),
  (
    'ABSGD with lambda > 0 is worse than the cross entropy',
    'CE',
    'ABSGD 5',
    'test_error',
  ),
)
# name -> (data, what is done to it before, share of wrong labels, examples).
_PART = {'average_blocks': {'size': 2}, 'hold_out': {'share': 0.95}}
_GROUPS = {
  'digits, no noise': ('digits', {}, 0.0, 1347),
  'digits, 20 % noise': ('digits', {}, 0.2, 1347),
  'digits, 40 % noise': ('digits', {}, 0.4, 1347),
  'Fashion, 40 % noise': ('fashion_mnist', _PART, 0.4, 3000),
  'C10, no noise': ('cifar10', {}, 0.0, 50_000),
  'C10, 20 % noise': ('cifar10', {}, 0.2, 50_000),
  'C10, 40 % noise': ('cifar10', {}, 0.4, 50_000),
}
_WARMUP = 0.1  # share of the budget
SCALES = {
  'smoke': {
    'model.hidden': (8,),
    'steps_per_call': 10,
    'num_evaluations': 2,
    'sweep': {
      'groups': ('digits, 40 % noise',),
      'num_epochs': 2,
      'num_seeds': 2,
      'cells': ('digits, 40 % noise: CE', 'digits, 40 % noise: ABSGD -1'),
    },
  },
  'paper': {
    'model': {'name': 'cifar_resnet', 'depth': 32},
    'augmentations': {'pad_and_crop': {'padding': 4}, 'flip': {}},
    'optimizer': {
      'name': 'sgd',
      'learning_rate': 0.1,
      'momentum': 0.9,
      'weight_decay': 2e-4,
      'schedule': {
        'name': 'steps',
        'at': (0.8,),
        'factor': 0.01,
        'warmup': 0.025,
      },
    },
    'sampler': {'name': 'shuffle', 'batch_size': 128},
    'num_evaluations': 50,
    'sweep': {
      'groups': ('C10, no noise', 'C10, 20 % noise', 'C10, 40 % noise'),
      'num_epochs': 200,
      'num_seeds': 3,
      'cells': (),
    },
  },
}


def get_config():
  """All settings of a run; the defaults are those of the cross entropy."""
  config = digits.get_config()
  config.name = 'absgd_noise'
  config.optimizer.learning_rate = 0.03
  config.sampler = {'name': 'shuffle', 'batch_size': 64}
  config.num_evaluations = 8
  config.sweep = {
    'groups': (
      'digits, no noise',
      'digits, 20 % noise',
      'digits, 40 % noise',
      'Fashion, 40 % noise',
    ),
    'num_epochs': 60,
    'num_seeds': 10,
    'cells': (),
  }
  return config


def cells(config):
  """Every way to treat wrong labels, at every share of them."""
  return {
    f'{group}: {way}': changes
    for group in config['sweep']['groups']
    for way, changes in _ways(config, *_GROUPS[group]).items()
  }


def _ways(config, data, before, share, num_examples):
  """Way -> changes, on one training set."""
  budget = 3 * num_examples * config['sweep']['num_epochs']
  batch_size = config['sampler']['batch_size']

  def robust(name, temperature, start=_WARMUP):
    return {
      'robust': {'name': name, 'temperature': temperature, 'start': start}
    }

  ways = {
    BASELINE: {},
    'CE, a quarter of the budget': {'budget': budget // 4},
    'label smoothing 0.1': {
      'loss': {'name': 'cross_entropy', 'label_smoothing': 0.1}
    },
    'focal': {'loss': {'name': 'focal'}},
    'chi-square -1': robust('chi_square', -1.0),
    'ABSGD -2': robust('absgd', -2.0),
    'ABSGD -1': robust('absgd', -1.0),
    'ABSGD -0.5': robust('absgd', -0.5),
    'ABSGD -1, from the start': robust('absgd', -1.0, start=0.0),
    'ABSGD -1, importance sampling': robust('absgd', -1.0)
    | {
      'sampler': {
        'name': 'presample',
        'batch_size': batch_size,
        'pool_size': 5 * batch_size,
        'tau_threshold': 0.0,  # the gate would never open
        'mix': 0.1,
      }
    },
    'ABSGD 5': robust('absgd', 5.0),
  }
  training_set = {
    'data': data,
    'transformations': before | {'symmetric_noise': {'share': share}},
    'budget': budget,
  }
  return {way: training_set | changes for way, changes in ways.items()}
