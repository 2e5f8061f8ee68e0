"""Networks: the U-Net, a text encoder, and a conditional U-Net of both."""
