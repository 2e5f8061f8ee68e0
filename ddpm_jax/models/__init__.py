"""Networks: the U-Net, a patch transformer, a text encoder, and a network with a condition."""
