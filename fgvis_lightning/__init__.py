"""See, pixel by pixel and color by color, what evidence a CNN's decision rests on.

FGVis (Wagner et al., CVPR 2019) on PyTorch Lightning. The data flow, and the modules in its order::

    method          the method in plain torch: games, gates, levels, solvers
    quiet           without Lightning's log lines
    errors          a user's mistake
    names           names as parts of file names
    shipped         the package's configurations
    network         a frozen classifier with its preprocessing and class names
    nonlinearities  which are gated, which are not, and why
    coverage        what a pass through the network met
    audit           the checks that nothing escapes the gates
    interception    activation calls, however they are written
    gates           which gradients pass
    defense         DefendedCNN: the classifier with gates behind its nonlinearities
    folding         batch normalization, folded into convolutions
    store           explanations in memory and on disk
    tables          CSV and Markdown
    cost            seconds and network passes
    folder          a results folder, which many processes fill
    images          image files → tensors
    items           files → items (image, target class)
    data            items → the places of a batch
    batch_size      the most images that fit
    answers         logits, checked, and the target classes they decide
    strategy        many processes, each with masks of its own
    module          what explains the items of a sweep, whatever the method
    explainer       FGVis, a LightningModule whose only parameter is the mask
    memory          explain(), the same for tensors in memory
    figures         tensors → figures
    callbacks       files and panels
    tensorboard     masks, curves and hyperparameters in TensorBoard
    progress        one line for a whole sweep
    run             one run of a trainer that fills a results folder
    baselines       the methods beside FGVis, with one signature
    metrics         what maps and masks are worth, in numbers
    bias            statistics of explanations beside interventions on images
    building        the network of a configuration
    parsing         help, mistakes and configurations of all commands
    experiments     the commands beside fit
    report          a results folder → a page to look at
    signals         what ends a run from outside
    completion      what a shell needs to complete commands
    cli             the command line
"""

from fgvis_lightning.defense import DefendedCNN
from fgvis_lightning.errors import InputError
from fgvis_lightning.explainer import FGVis
from fgvis_lightning.figures import draw
from fgvis_lightning.memory import explain
from fgvis_lightning.store import Explanation, load_explanation, load_explanations

__version__ = "0.1.0.dev0"

__all__ = [
    "DefendedCNN",
    "Explanation",
    "FGVis",
    "InputError",
    "draw",
    "explain",
    "load_explanation",
    "load_explanations",
]
