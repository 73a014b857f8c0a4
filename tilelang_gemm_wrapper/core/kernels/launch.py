"""Launching a kernel in thread-block clusters."""

import tilelang.language as T


def in_clusters(*grid, threads: int, cluster_dims: tuple[int, int, int]):
    """`T.Kernel` with a thread-block cluster, which TileLang 0.1.12 to 0.1.14 call `T.ClusterKernel`."""
    frame = getattr(T, "ClusterKernel", T.Kernel)
    return frame(*grid, threads=threads, cluster_dims=cluster_dims)
