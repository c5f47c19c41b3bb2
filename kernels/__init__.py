"""Triton kernels, one module per operator, with the operators' names. The contracts are in fastvoc/ops/.

Imported when first used (`lazy` in fastvoc/_op.py): importing fastvoc needs no Triton. Installed as fastvoc.kernels.
"""
