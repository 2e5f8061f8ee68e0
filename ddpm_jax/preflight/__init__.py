"""Preflight: compiles the programs of a training run before the run, and reports memory, cost and speed.

    ddpm-jax preflight configs/cifar10.py --shape 32 32 3 --topology v5e:4x4     # for TPUs that are elsewhere
    ddpm-jax preflight configs/digits.py                                         # for the devices at hand

`topology` names slices of TPUs, `lowering` makes the programs that `train.py` compiles, `compile_stats` reads their
memory, operations and collectives, `local_measurement` times steps on the devices at hand, and `report` prints them.
"""
