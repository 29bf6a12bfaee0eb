"""Which law should the batches of ABSGD be drawn from?

ABSGD descends lambda log mean exp(l / lambda): a robust objective, ruled by the
largest losses where lambda is small, and by the smallest where it is negative,
against label noise. Each gradient is weighted by exp(l / lambda) / u. How noisy
and how biased is that step, under uniform draws, draws by loss and by the norm
of the gradient, and draws by that norm times exp(l / lambda)? With the exact u
in closed form; with the moving u of the transforms on many batches.

Found, at lambda 0.5: with the exact u, draws by the logit-gradient norm times
exp(l / lambda), half of them uniform, leave 0.1 of the noise of uniform draws
early (0.7 on mnist) and 0.0008 to 0.02 later; by loss 0.04 to 0.3 later. At
lambda 5 the tilt adds little to the norm; at -1 draws by loss or norm alone can
be noisier than uniform ones, tilted ones never are. The softmax over a uniform
batch, gamma 1, is biased by 41 % early on the digits and by up to 99 % later;
gamma 0.1 leaves 9 % (up to 92 %), gamma 0.01 1 +- 5 % (up to 40 %). The mixed
tilted draws are biased by less than 2 % at every gamma. Not mixed they are less
noisy where u is exact, but biased by 74 % at gamma 1 on digits that are learnt.
Importance weights left out of u shorten the mixed tilted steps by 84 to 99.9 %
(23 % early on mnist), whatever gamma.

Run: ./launch.sh configs/robust_gradient.py         (three minutes on one core)
"""

import ml_collections

SCALES = {
  'smoke': {
    'hidden': (),
    'steps': (20,),
    'temperatures': (0.5,),
    'gammas': (1.0, 0.1),
    'num_chains': 4,
    'num_batches': 8,
    'sweep': {'data': ('digits',)},
  }
}


def get_config():
  """All settings of a run; a run is one training set."""
  return ml_collections.ConfigDict(
    {
      'name': 'robust_gradient',
      'study': 'robust_gradient',
      'seed': 0,
      'data': 'digits',
      'flipped_share': 0.2,  # of the labels of the noisy digits
      'hidden': (32,),  # widths of the model's hidden layers
      'learning_rate': 0.1,
      'batch_size': 64,
      'steps': (100, 500, 2000),  # of plain training, where it is measured
      'temperatures': (-1.0, 0.5, 1.0, 2.0, 5.0),
      'gammas': (1.0, 0.1, 0.01),  # share of the batch in the moving u
      'mix': 0.5,  # share of the uniform law in the mixed ones
      'num_chains': 64,  # independent ones, for every law and gamma
      'num_batches': 64,  # of each chain, once u has settled
      'noise_every': 8,  # batches, one that the noise is taken from
      'sweep': {'data': ('digits', 'noisy digits', 'mnist')},
    }
  )


def sweep(config):
  """One run per training set; mnist needs a file, see the README."""
  for data in config['sweep']['data']:
    yield {'data': data}
