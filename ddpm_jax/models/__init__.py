"""Networks: the U-Net, a text encoder, and a network with a condition."""
