"""Records of unequal weight: which law should mini-batches be drawn from?

Some records count 1000 times in the objective, most count 1 to 10 times. Any
law p estimates its gradient without bias if each drawn gradient is multiplied
by (r/R) / p. How noisy the estimate is depends on p. The tables give the exact
variance under each law, by a sum over all records, on made-up and on real
records, before, in the middle and at the end of training.

Found: before training, drawing by r takes most of what there is to gain; it
falls behind as the heavy records are learnt. On the mammography rows, where one
record has 30 % of the weight, it ends at 1.3 times the variance of uniform
draws, and r times the logit-gradient norm at 0.07 times. To mix 0.1 of r into
that costs 1 to 8 % of variance and bounds every importance weight by 10.

Run: ./launch.sh configs/weighted_records.py        (half a minute on one core)
"""

import ml_collections

SCALES = {
  'smoke': {
    'hidden': (),
    'steps': (0, 20),
    'mixes': (0.5,),
    'num_batches': 64,
    'sweep': {'data': ('synthetic',)},
  }
}


def get_config():
  """All settings of a run; a run is one set of records."""
  return ml_collections.ConfigDict(
    {
      'name': 'weighted_records',
      'study': 'gradient_variance',
      'seed': 0,
      'data': 'synthetic',
      'synthetic': {  # the record weights of the made-up set
        'heavy_share': 0.02,
        'heavy_weight': 1000.0,
        'max_light_weight': 10,
      },
      'hidden': (32,),  # widths of the model's hidden layers
      'learning_rate': 0.1,
      'batch_size': 32,
      'steps': (0, 200, 2000),  # of training, at which the variance is taken
      'mixes': (0.1, 0.5),  # shares of another law in the optimum
      'num_batches': 4096,  # of the one estimate that has to be sampled
      'sweep': {'data': ('synthetic', 'digits', 'mammography')},
    }
  )


def sweep(config):
  """One run per set of records; mammography needs a file, see the README."""
  for data in config['sweep']['data']:
    yield {'data': data}
