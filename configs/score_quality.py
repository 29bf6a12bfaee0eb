"""How well does a score stand in for the norm of an example's gradient?

Reproduces: Katharopoulos & Fleuret (2018), figures 1 and 2, on other data and
networks. Six networks are trained on uniform batches; at five steps of each,
over 1024 of its training images, the variance of the gradient is taken under
the law of every score, by formula and by draws, from a table of all examples
and from pools; then, where a pool pays for the scoring of its examples.

Found: what there is to gain depends on how well the data are learnt. Before
training no score is better than uniform draws by more than 6 %; at the end the
bound (the logit-gradient norm) leaves .0036 of their variance on digits by an
MLP (loss .0017), and .80 on CIFAR-10 (loss 1.2). In MLPs and ResNets that is
1.01 to 1.17 times the least variance. In LSTMs, once they train, the bound is
loose: 1.43 to 2.64 times, with a correlation to the norm of .43 to .82. 1 -
label probability comes within 3 % of it everywhere; the loss leaves .96 to 1.36
times its variance, and its tau promises up to 2.8 times the equal batch that it
gives. Under the bound b tau^2 is .70 to 1.01 times the exact equal batch.

A pool of B = 5 b pays at equal cost in 10 of 30 stages, all of them at a
loss of .25 or below, and the gate at the break-even tau is right in 28 (closed
in 2 that pay). The best pool of all gains a factor of 2.5, on the MLP that has
learnt the digits by heart; none pays on CIFAR-10, or on MNIST by LSTM. With a
backward pass that costs two forward ones no pool gains more than 3, whatever
the score, and none pays unless it leaves less than .18 of the variance.

Run: ./launch.sh configs/score_quality.py        (five minutes on one core)
Data: mnist.npz and cifar10.npz in ISJAX_DATA_DIR; left out if not there.
"""

import ml_collections

SCALES = {
  'smoke': {
    'problems.digits_mlp.steps': (0, 20),
    'problems.digits_mlp.model': {'name': 'mlp', 'hidden': (8,)},
    'subset_size': 64,
    'batch_size': 8,
    'pool_size': 32,
    'num_batches': 64,
    'sweep': {'problems': ('digits_mlp',)},
  }
}


def _problem(data, model, optimizer, steps, block=1):
  """What is trained, and the steps at which it is measured."""
  return {
    'data': data,
    'block': block,  # pixels a side that are averaged
    'model': model,
    'optimizer': optimizer,
    'steps': steps,
  }


def get_config():
  """All settings of a run; a run is one network on one data set."""
  mlp = {'name': 'mlp', 'hidden': (64, 64, 64)}
  small_mlp = {'name': 'mlp', 'hidden': (32, 32)}
  resnet = {'name': 'resnet', 'width': 8}
  lstm = {'name': 'lstm', 'hidden': 64}
  sgd = {'name': 'sgd', 'learning_rate': 0.05, 'momentum': 0.9}
  adam = {'name': 'adam', 'learning_rate': 0.003}
  problems = {
    'digits_mlp': _problem('digits', mlp, sgd, (0, 50, 200, 500, 1000)),
    'digits_resnet': _problem('digits', resnet, sgd, (0, 50, 100, 200, 400)),
    'digits_lstm': _problem('digits', lstm, adam, (0, 100, 300, 750, 1500)),
    'mnist_mlp': _problem('mnist', small_mlp, sgd, (0, 100, 500, 1500, 3000)),
    'mnist_lstm': _problem(
      'mnist', lstm, adam, (0, 100, 500, 1250, 2500), block=4
    ),
    'cifar10_resnet': _problem(
      'cifar10', resnet, sgd, (0, 100, 500, 1500, 3000)
    ),
  }
  return ml_collections.ConfigDict(
    {
      'name': 'score_quality',
      'study': 'score_quality',
      'seed': 0,
      'problem': 'digits_mlp',
      'problems': problems,
      'subset_size': 1024,  # M, the examples that are measured
      'batch_size': 32,  # b, of training and of the draws
      'clip_norm': 1.0,  # of the gradient, in training
      'num_batches': 1024,  # that are drawn to check the formulas
      'pool_size': 160,  # B, of the pools that are drawn
      'mix': 0.1,  # share of the uniform law in the column of that name
      # The map of where a pool pays: B / b, b, and backward over forward cost.
      'pool_multiples': (1.5, 2, 3, 5, 8, 12, 20),
      'batch_sizes': (16, 128),
      'backward_costs': (0.1, 1, 2, 3, 5),
      'sweep': {'problems': tuple(problems)},
    }
  )


def sweep(config):
  """One run per problem; mnist and cifar10 need their files."""
  for problem in config['sweep']['problems']:
    yield {'problem': problem}
