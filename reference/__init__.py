"""CKD in plain PyTorch: the truth that kernels and engines are measured against.

Read it in this order: config (sizes), vit (one branch), elimination (which search tokens stay), head, model (the loop
over the blocks for both modalities), boxes (from maps to a box), preprocess (crops), labels, losses, training, cost.
"""

if __name__ != "ckd_fast.reference":
    raise ImportError("import this folder as ckd_fast.reference, not as a top-level 'reference'")
