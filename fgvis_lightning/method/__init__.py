"""The method (Wagner et al., CVPR 2019) in plain torch, to be read along with the paper.

    games        the four objectives, references, scores (section 3.1)
    gates        rules for the gradient of a neuron: the paper's and a restoring one (section 3.2)
    level        the score that an explanation must reach, for ``lam: auto``
    solver       base of the optimizers that search for the smallest evidence that reaches the level
    solvers      the two solvers, Pruning and Thresholding
    convergence  early stopping of an image
    loop         all of it in one loop

Nothing here depends on Lightning, files or devices.
"""
