"""TileLang kernels that do next to nothing, with 1, 5 and 19 tensors; imports tilelang.

A tensor that is not used would be dropped from the kernel's parameters, so one value of each is written.
"""

import tilelang.language as T

F32 = "float32"


@T.prim_func
def nop_1(
    a: T.Tensor((128,), F32),
):
    with T.Kernel(1, threads=128):
        if T.get_thread_binding() == 0:
            a[0] = 0.0


@T.prim_func
def nop_5(
    a: T.Tensor((128,), F32),
    b: T.Tensor((128,), F32),
    c: T.Tensor((128,), F32),
    d: T.Tensor((128,), F32),
    e: T.Tensor((128,), F32),
):
    with T.Kernel(1, threads=128):
        if T.get_thread_binding() == 0:
            a[0] = 0.0
            b[0] = 0.0
            c[0] = 0.0
            d[0] = 0.0
            e[0] = 0.0


@T.prim_func
def nop_19(
    a: T.Tensor((128,), F32),
    b: T.Tensor((128,), F32),
    c: T.Tensor((128,), F32),
    d: T.Tensor((128,), F32),
    e: T.Tensor((128,), F32),
    f: T.Tensor((128,), F32),
    g: T.Tensor((128,), F32),
    h: T.Tensor((128,), F32),
    i: T.Tensor((128,), F32),
    j: T.Tensor((128,), F32),
    k: T.Tensor((128,), F32),
    l: T.Tensor((128,), F32),
    m: T.Tensor((128,), F32),
    n: T.Tensor((128,), F32),
    o: T.Tensor((128,), F32),
    p: T.Tensor((128,), F32),
    q: T.Tensor((128,), F32),
    r: T.Tensor((128,), F32),
    s: T.Tensor((128,), F32),
):
    with T.Kernel(1, threads=128):
        if T.get_thread_binding() == 0:
            a[0] = 0.0
            b[0] = 0.0
            c[0] = 0.0
            d[0] = 0.0
            e[0] = 0.0
            f[0] = 0.0
            g[0] = 0.0
            h[0] = 0.0
            i[0] = 0.0
            j[0] = 0.0
            k[0] = 0.0
            l[0] = 0.0
            m[0] = 0.0
            n[0] = 0.0
            o[0] = 0.0
            p[0] = 0.0
            q[0] = 0.0
            r[0] = 0.0
            s[0] = 0.0


TILELANG_NOPS = {1: nop_1, 5: nop_5, 19: nop_19}
