"""Imbalanced classes: what does one epoch of weighted sampling show?

Four classes of 2555, 227, 621 and 2552 images; one epoch is as many draws as
there are images, 5955, each by a weight that falls with the size of its class.
How many images are never seen, how often are the others repeated, and how even
are the classes? For independent draws (what a weighted random sampler makes)
and for systematic ones, in closed form and measured; and for a well-known
mistake: counts that `value_counts()` has sorted by size, used as if they were
sorted by class.

Found: with weights 1/n, 48.8 % of the images are never seen in an independent
epoch and 35.8 % in a systematic one, whose class counts vary a quarter to a
half as much. The mistake draws the smallest class .7 % of the time, not 25 %.

Run: ./launch.sh configs/imbalanced_classes.py      (half a minute on one core)
"""

import ml_collections

SCALES = {
  'smoke': {
    'class_counts': (30, 3, 7),
    'num_epochs': 20,
    'sweep': {'kinds': ('uniform', 'inverse_frequency')},
  }
}


def get_config():
  """All settings of a run; a run is one way to weight the classes."""
  return ml_collections.ConfigDict(
    {
      'name': 'imbalanced_classes',
      'study': 'weighted_epochs',
      'seed': 0,
      'class_counts': (2555, 227, 621, 2552),
      'kind': 'inverse_frequency',
      'num_epochs': 1000,  # that are measured
      'sweep': {
        'kinds': (
          'uniform',
          'inverse_sqrt',
          'effective_number',
          'inverse_frequency',
          'value_counts',
        )
      },
    }
  )


def sweep(config):
  """One run per way to weight the classes."""
  for kind in config['sweep']['kinds']:
    yield {'kind': kind}
