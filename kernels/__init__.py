"""Triton kernels. A file has formula, kernel and launcher; the same in plain PyTorch is in `reference/`."""

if __name__ != "ckd_fast.kernels":
    raise ImportError("import this folder as ckd_fast.kernels: a top-level 'kernels' is another project's name")
