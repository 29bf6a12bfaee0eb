"""Should augmentation be the stronger, the more important an example is?

An extension of ours to sampling by early importance (configs/early_views.py
has its claim): each draw is augmented with a chance, which is the example's
rank of importance in [0, 1] ("by rank"), or 1 less the rank ("by reverse
rank"). The control has the same chance for all, "half", and there are none and
all of the draws, "never" and "always", and shuffled epochs. An MLP on 3,000
images, which are shifted by up to a pixel and mirrored half the time.

Found (6 seeds): the rank does not help. By rank the test error is .17
[-.07, .42] points above that of the same chance for all (15.4 %), by reverse
rank .39 [.07, .71]. How much is augmented matters: half of the draws are better
than all of them and than none, by .7 and 1.5 points under uniform sampling
(15.5 % with half), and by 1.0 and 2.0 under focal sampling.

All cells make the same number of updates, at one learning rate: rates are
chosen by the training loss, which falls the faster the less is augmented.

Run: ./launch.sh configs/early_strength.py    (three minutes on one core)
Data: fashion_mnist.npz in ISJAX_DATA_DIR.
"""

from configs import early_convergence, early_views

# The row that the others are compared with, seed by seed.
BASELINE = 'focal, half'
METRICS = ('train_loss', 'test_error')
CLAIMS = (
  (
    'augmenting important examples more has a lower test error than all alike',
    'focal, by rank',
    'focal, half',
    'test_error',
  ),
  (
    'augmenting important examples less has a lower test error than all alike',
    'focal, by reverse rank',
    'focal, half',
    'test_error',
  ),
  (
    'focal sampling has a lower test error than uniform sampling, half of the '
    'draws augmented',
    'focal, half',
    'uniform, half',
    'test_error',
  ),
)
SCALES = {
  'smoke': early_views.SCALES['smoke']
  | {
    'sweep': {
      'num_examples': 1347,
      'num_seeds': 2,
      'cells': ('focal, half', 'focal, by rank'),
    }
  },
  'paper': early_convergence.CIFAR10
  | {'sweep': {'num_examples': 50_000, 'num_seeds': 3, 'cells': ()}},
}


def get_config():
  """All settings of a run; the defaults are those of a uniform cell."""
  config = early_views.get_config()
  config.name = 'early_strength'
  config.sweep = {'num_examples': 3000, 'num_seeds': 6, 'cells': ()}
  return config


def cells(config):
  """Who is augmented how often, by both ways to sample."""
  num_examples = config['sweep']['num_examples']
  focal = early_convergence.early(config, num_examples)
  ranked = early_convergence.early(config, num_examples, ranked=True)

  def sometimes(chance):
    choice = {'sometimes': {'chance': chance}}
    return {'augmentations': config['augmentations'] | choice}

  shares = {
    'never': {'augmentations': {}},
    'half': sometimes(0.5),
    'always': {},
  }
  return {
    f'{way}, {share}': sampling | augmentations
    for way, sampling in (('uniform', {}), ('focal', focal))
    for share, augmentations in shares.items()
  } | {
    'focal, by rank': ranked | sometimes('rank'),
    'focal, by reverse rank': ranked | sometimes('reverse_rank'),
  }
