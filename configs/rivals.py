"""Rivals of today on one protocol: selective backprop, InfoBatch, pruning.

Reproduces: the comparison that the papers of these methods lack, each one
against uniform sampling and the others, at equal cost, and against its own
control. InfoBatch (Qin et al. 2023) prunes half of the examples of small loss
and weights the rest up; its weights make the average step 1 / (kept share)
times as large, so that its control is a uniform part of the same size with the
same factor. Selective backprop (Jiang et al. 2019) looks at 3 b candidates and
trains on the b of larger loss, uncorrected. Random pruning keeps half of the
examples, anew in each epoch or once and for all.

Found (5 seeds, the better of two rates): InfoBatch pays. At equal cost its test
error is .46 [.31, .60] points below that of uniform epochs, it gets to their
end at .84 [.75, .93] of the cost, and its control, with the same share kept and
the same factor, gains nothing of that. Half of the examples, anew in each
epoch, are as good as all; a half chosen once costs .4 points. Selective
backprop ends .3 points above uniform epochs and the logit gradient .6: both pay
for scoring with half of the updates, and training is far from its end (a loss
of .25). Early importance has the lowest training loss, .88 times, and gains no
test error by it.

Run: ./launch.sh configs/rivals.py        (five minutes on two cores)
Data: fashion_mnist.npz in ISJAX_DATA_DIR.
"""

from configs import digits

# The row that the others are compared with, seed by seed.
BASELINE = 'shuffle'
TARGET = 'test_error'
CLAIMS = (
  (
    'InfoBatch has a lower test error than uniform epochs of the same cost',
    'InfoBatch',
    'shuffle',
    'test_error',
  ),
  (
    'InfoBatch has a lower test error than its control',
    'InfoBatch',
    'uniform part, same factor',
    'test_error',
  ),
  (
    'InfoBatch needs less to get to the test error of uniform epochs',
    'InfoBatch',
    'shuffle',
    'cost_to_target',
  ),
  (
    'selective backprop has a lower test error at equal cost',
    'selective backprop',
    'shuffle',
    'test_error',
  ),
  (
    'selective backprop has a lower test error than the logit gradient',
    'selective backprop',
    'logit gradient, always',
    'test_error',
  ),
  (
    'a part chosen anew in each epoch beats one chosen once',
    'uniform part of each epoch',
    'uniform part of the run',
    'test_error',
  ),
)
SCALES = {
  'smoke': {
    'data': 'digits',
    'model.hidden': (8,),
    'budget': 6000,
    'steps_per_call': 10,
    'num_evaluations': 2,
    'sweep': {
      'kept_share': 0.8,
      'learning_rates': (0.05,),
      'num_seeds': 2,
      'cells': ('shuffle', 'InfoBatch'),
    },
  },
  'paper': {
    'data': 'cifar10',
    'augmentations': {'pad_and_crop': {'padding': 4}, 'flip': {}},
    'model': {'name': 'cifar_resnet', 'depth': 20},
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
    'sweep': {
      'kept_share': 0.7,
      'learning_rates': (0.1,),
      'num_seeds': 3,
      'cells': (),
    },
  },
}


def get_config():
  """All settings of a run; the defaults are those of uniform epochs."""
  config = digits.get_config()
  config.name = 'rivals'
  config.data = 'fashion_mnist'
  config.model.hidden = (128, 64)
  config.sampler = {'name': 'shuffle', 'batch_size': 128}
  config.budget = 3 * 60_000 * 8  # 8 epochs of all examples
  config.steps_per_call = 100
  config.num_evaluations = 16
  config.sweep = {
    'kept_share': 0.67,  # of InfoBatch, for its control
    'learning_rates': (0.05, 0.1),
    'num_seeds': 5,
    'cells': (),
  }
  return config


def cells(config):
  """Each rival, and its control."""
  batch_size = config['sampler']['batch_size']

  def by(name, **options):
    return {'sampler': {'name': name, 'batch_size': batch_size, **options}}

  def part(**options):
    return by('random_pruning', **options)

  kept = config['sweep']['kept_share']
  return {
    BASELINE: {},
    'InfoBatch': by('info_batch'),
    'uniform part, same factor': part(keep=kept, rescale=True, annealing=0.125),
    'uniform part of each epoch': part(keep=0.5),
    'uniform part of the run': part(keep=0.5, subset='run'),
    'selective backprop': by('selective_backprop') | {'draw_score': 'loss'},
    'logit gradient, always': by(
      'presample', pool_size=3 * batch_size, tau_threshold=0.0, mix=0.1
    ),
    'early importance': by('early_importance', warmup_epochs=1.0)
    | {'exponent': 0.0},
  }
