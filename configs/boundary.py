"""Where does importance sampling look, and what is that worth?

Reproduces: the toy of Canevet et al. (2016), Importance sampling tree for
large-scale empirical expectation, with other scores and samplers. Points of a
square have one of two classes, on either side of a winding boundary, and labels
that are noisy in a narrow band about it. A network is trained on them, by
uniform draws and by pools that are resampled by score; maps show where each
score's draws would fall, at four stages, and tables whether that pays.

Found: draws do go to the boundary, early to all of it that is not learnt yet,
late to its noise. At the end .97 of the draws by the logit-gradient norm, and
.95 by the loss or the gradient's norm, are within .05 of it, which is .44 of
the square. The score correlates with the norm by .87 after 2 % of the budget
and by .78 at its end, and leaves .25 of the second moment of uniform draws
where the norm leaves .17. The loss, with no mix, is 0 in float32 at examples
that have a gradient, so that its variance is infinite from a tenth of the
budget on.

It does not pay. At equal cost, each at its best rate, pools by the bound end
with a loss .012 further from the least possible than uniform draws (95 %
interval .007 to .017, 10 seeds) and an error .6 points further (.3 to 1.0);
pools by the loss alike. A uniform batch of a pool's cost is no different from a
small one (+.004, -.003 to +.012). Nor could much be gained: the labels' noise
leaves 4 / 40 = .1 of the second moment to a network that knows all chances, and
a pool whose backward pass costs two forward ones pays below .18 only.

Run: ./launch.sh configs/boundary.py              (one minute on one core)
"""

import ml_collections

SCALES = {
  'smoke': {
    'num_examples': 512,
    'budget': 12800,
    'stages': (0.5, 1.0),
    'learning_rates': (0.1,),
    'num_seeds': 2,
    'map_size': 24,
    'sweep.sampling': ('logit_gradient_norm',),
  }
}


def get_config():
  """All settings of a run; a run is one way to draw."""
  pool = {'name': 'presample', 'batch_size': 32, 'pool_size': 160}
  always = pool | {'tau_threshold': 0.0}
  bound = 'logit_gradient_norm'
  methods = {
    'uniform': {
      'sampler': {'name': 'uniform', 'batch_size': 32},
      'score': bound,
    },
    # As many forward-equivalents a step as with the pool.
    'uniform_large_batch': {
      'sampler': {'name': 'uniform', 'batch_size': 85},
      'score': bound,
    },
    bound: {'sampler': always, 'score': bound},
    'loss': {'sampler': always, 'score': 'loss'},
  }
  return ml_collections.ConfigDict(
    {
      'name': 'boundary',
      'study': 'boundary',
      'seed': 0,
      'sampling': bound,
      'methods': methods,
      'smoothness': 40.0,  # of the labels' law across the boundary
      'num_examples': 20000,
      'hidden': (64, 64, 64),
      'momentum': 0.9,
      'learning_rates': (0.03, 0.1, 0.3),  # at first; to 0 by a cosine
      'budget': 576000,  # forward-equivalents
      'stages': (0.02, 0.1, 0.3, 1.0),  # of the budget
      'num_seeds': 10,
      'map_size': 160,  # points a side, of maps and of integrals
      'distances': (0.01, 0.05),  # from the boundary
      'sweep': {'sampling': tuple(methods)},
    }
  )


def sweep(config):
  """One run per way to draw."""
  for sampling in config['sweep']['sampling']:
    yield {'sampling': sampling}
