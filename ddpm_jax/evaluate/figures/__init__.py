"""The paper's figures, a module each: `measure` makes the numbers and images, `run` writes them."""
