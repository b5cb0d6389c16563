"""The method (Wagner et al., CVPR 2019) in plain torch, to be read along with the paper.

    games        the four objectives, references, scores (section 3.1)
    gates        rules for the gradient of a neuron: the paper's and a restoring one (section 3.2)
    tasks        the meaning of the network's outputs: softmax, or one or several sigmoids
    level        the score that an explanation must reach, for ``lam: auto``
    options      options of an explanation, with their defaults
    runs         the state of a solver, and comparisons between the runs of an image
    solver       base of the optimizers that search for the smallest evidence that reaches the level
    solvers      the two solvers, Pruning and Thresholding
    storage      masks as they are stored
    convergence  early stopping of an image
    loop         all of it in one loop

Nothing here depends on Lightning, files or devices.
"""
