"""Triton kernels of ckd_fast. Each file reads: the formula, the kernel, the launcher; its twin is in `reference/`."""

if __name__ != "ckd_fast.kernels":
    raise ImportError("import this folder as ckd_fast.kernels: a top-level 'kernels' is another project's name")
