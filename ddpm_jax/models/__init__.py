"""The networks: a U-Net, an encoder of texts, and both in one."""
