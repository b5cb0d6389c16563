"""The method (Wagner et al., CVPR 2019) as plain functions of torch, to be read with the paper beside it.

    games        what is minimized over the mask: four objectives, references, scores (section 3.1)
    gates        which gradient passes a neuron: the defense's rule, and one that restores (section 3.2)
    level        which score an explanation is to reach, for ``lam: auto``
    solver       what optimizers of the mask share that look for the smallest evidence that reaches it
    solvers      two of them: Pruning and Thresholding
    convergence  when an image's explanation has stopped getting better
    loop         all of it in one loop

Nothing here knows of Lightning, files or devices.
"""
