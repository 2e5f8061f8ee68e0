"""Will it compile, fit, and how fast: the programs of a training run, compiled before the run.

    ddpm-jax preflight configs/cifar10.py --shape 32 32 3 --topology v5e:4x4     # for TPUs that are elsewhere
    ddpm-jax preflight configs/digits.py                                         # for the devices at hand

`topology` names slices of TPUs, `programs` makes what `train.py` compiles, `facts` says what a compiled program needs,
`here` takes steps on the devices at hand, `report` puts it into words, and `table` collects many reports on one page.
"""
