"""Does importance sampling pay on the digits, at equal cost?

Reproduces: the protocol of Katharopoulos & Fleuret (2018), section 4, on 1,347
real images, with the control that their comparison lacks: uniform sampling
with the batch that costs as much as a scored step.
Run: ./launch.sh        (the same as ./launch.sh configs/digits.py)
"""

import ml_collections

# The row that the others are compared with, seed by seed.
BASELINE = 'uniform'
SCALES = {
  'smoke': {
    'model.hidden': (8,),
    'budget': 1500,
    'steps_per_call': 5,
    'num_evaluations': 3,
    'sweep': {
      'learning_rates': (0.1,),
      'num_seeds': 2,
      'cells': ('uniform', 'logit gradient, gate'),
    },
  }
}


def get_config():
  """All settings of a run; the defaults are those of the gated cell."""
  return ml_collections.ConfigDict(
    {
      'name': 'digits',
      'cell': '',
      'seed': 0,
      'data': 'digits',
      'transformations': {},  # of the set, such as imbalance and noise
      'augmentations': {},  # of an image: name -> options
      'model': {'name': 'mlp', 'hidden': (64, 64, 64)},
      'loss': {'name': 'cross_entropy'},
      'class_weights': {'name': 'none', 'start': 0.0},  # shares of the budget
      'robust': {'name': 'none', 'start': 0.0},
      'optimizer': {
        'name': 'sgd',
        'learning_rate': 0.1,
        'momentum': 0.9,
        'schedule': {'name': 'cosine'},  # by the share of the budget spent
      },
      'sampler': {
        'name': 'presample',
        'batch_size': 16,
        'pool_size': 80,
        'tau_threshold': 'break_even',  # or 'paper', or a number
        'tau_from': 'pool',
        'mix': 0.1,
      },
      'score': 'logit_gradient_norm',  # of the training pass: the gate's
      'draw_score': 'logit_gradient_norm',  # of the pool
      'exponent': 1.0,  # of the importance weights
      'sharding': {'form': 'none'},  # or 'quota' or 'global': all devices
      'train_only': (),  # beginnings of parameters' paths; none: all
      'trunk': {},  # what runs have in common up to a share of the budget
      'until': 1.0,  # that share, for the trunk itself
      'budget': 240_000,  # forward-equivalents: 60 epochs of uniform sampling
      'steps_per_call': 50,
      'num_evaluations': 40,
      'checkpoints': {'minutes': 5.0, 'final': False},  # apart; of the end
      'sweep': {
        'learning_rates': (0.03, 0.06, 0.1),
        'num_seeds': 10,
        'cells': (),  # those wanted; none: all
      },
    }
  )


def cells(config):
  """What each cell changes; sizes follow those of the config."""
  batch_size = config['sampler']['batch_size']
  equal_cost = round((config['sampler']['pool_size'] + 3 * batch_size) / 3)
  return {
    BASELINE: {'sampler': {'name': 'uniform', 'batch_size': batch_size}},
    'uniform, cost-equal b': {
      'sampler': {'name': 'uniform', 'batch_size': equal_cost}
    },
    'logit gradient, gate': {},
    'logit gradient, always': {'sampler.tau_threshold': 0.0},
    'loss, gate': {'draw_score': 'loss', 'sampler.tau_from': 'batch'},
  }
