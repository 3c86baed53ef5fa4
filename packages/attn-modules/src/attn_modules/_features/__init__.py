"""Attention whose weights are products of features: sums over keys, and no matrix of scores.

`arithmetic` maps rows to features and back; `call` reads one call's inputs in chunks of rows;
`total_sums` and `prefix_sums` add them up, over all keys or over those up to each query; and
`operators` makes operators of torch of that.
"""
