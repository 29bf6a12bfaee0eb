"""Do more draws of important examples pay because they bring more views?

Asks: claim (e) of Quercia et al. (2023), SGD biased towards early important
samples: an important example is drawn more often, and by augmentation each draw
may be a new view of it. If that is why it pays, what focal sampling gains over
shuffled epochs grows with the number of views. Each example has 1, 2 or 8 views
that are made once and for all, or a new one at each draw; all views are shifted
by up to a pixel and mirrored half the time, so that groups differ in nothing
but their number. And there are the images as they are, "no augmentation". An
MLP on 3,000 images.

Found (6 seeds): more views help both ways to sample, from 19.0 % test error
with one to 17.3, 16.4 and 16.2 with 2, 8 and all under uniform sampling, and
focal sampling gains nothing from them: it is .3, .6, .2 and .2 points worse,
decided with 2 and with all, and .4 without augmentation. One view made once and
for all is worse than the image itself, 17.0 %, which is as test images are.
With 8 views and more the loss of the images themselves is lower under focal
sampling, and with fewer it is higher.

All cells make the same number of updates, at one learning rate: rates are
chosen by the training loss, which falls the faster the fewer views there are.

Run: ./launch.sh configs/early_views.py    (three minutes on one core)
Data: fashion_mnist.npz in ISJAX_DATA_DIR.
"""

from configs import early_convergence

# In each group, the row that the others are compared with.
BASELINE = 'uniform'
METRICS = ('train_loss', 'test_error')
CLAIMS = (
  (
    'focal sampling has a lower test error than uniform sampling',
    'focal',
    'uniform',
    'test_error',
  ),
)
SCALES = {
  'smoke': early_convergence.DIGITS
  | {
    'augmentations': {'pad_and_crop': {'padding': 1}},
    'sweep': {
      'num_examples': 1347,
      'num_views': (2,),
      'num_seeds': 2,
      'cells': ('2 views: uniform', 'all views: focal'),
    },
  },
  'paper': early_convergence.CIFAR10
  | {
    'sweep': {
      'num_examples': 50_000,
      'num_views': (1, 2, 8),
      'num_seeds': 3,
      'cells': (),
    }
  },
}


def get_config():
  """All settings of a run; the defaults are those of a uniform cell."""
  config = early_convergence.get_config()
  config.name = 'early_views'
  config.transformations = {'hold_out': {'share': 0.95}}
  config.augmentations = {'pad_and_crop': {'padding': 1}, 'flip': {}}
  config.optimizer.learning_rate = 0.05
  config.budget = 3 * 3000 * 60
  config.steps_per_call = 100
  config.num_evaluations = 10
  config.sweep = {
    'num_examples': 3000,
    'num_views': (1, 2, 8),  # and all
    'num_seeds': 6,
    'cells': (),
  }
  return config


def cells(config):
  """Both ways to sample, by the number of views."""
  views = config['augmentations']
  focal = early_convergence.early(config, config['sweep']['num_examples'])

  def limited(num_views):
    limit = {'limit_views': {'num_views': num_views}}
    return {'augmentations': views | limit}

  groups = {'no augmentation': {'augmentations': {}}}
  for number in config['sweep']['num_views']:
    groups[f'{number} view{"s" if number > 1 else ""}'] = limited(number)
  groups['all views'] = {}
  return {
    f'{group}: {way}': augmentations | changes
    for group, augmentations in groups.items()
    for way, changes in ((BASELINE, {}), ('focal', focal))
  }
