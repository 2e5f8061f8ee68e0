"""The paper's figures, a module each: `run` draws, measures and writes one."""
