"""Which tiles each CTA of a persistent kernel computes, and in which order.

The CTAs come in clusters of two, which share nothing but the way to L2: their tiles lie one below the other
in C, so both need the same weights at about the same time, and the SMs of a cluster get them for less than
any two SMs would (docs/hopper-speed.md).
"""

from typing import Any, NamedTuple

import tilelang.language as T

PAIR = 2  # CTAs in a cluster
TILES_PER_PANEL = 8  # token tiles that share the weight tiles they find in L2


class Tiles(NamedTuple):
    """The tiles of the problem and which of them this CTA computes: `first`, then every `workers`-th."""

    tokens: int  # rows of C in a tile
    weights: int  # columns of C in a tile
    m_tiles: Any
    n_tiles: int
    first: Any
    workers: Any
    turns: Any  # how many this CTA computes


def in_pairs(ctas: int) -> int:
    """At most so many CTAs, but a pair at least."""
    return max(PAIR, ctas // PAIR * PAIR)


def grid_of(M, N, tile_tokens, tile_weights, ctas):
    """A CTA for each tile of an (M, N) result, one more if they are odd, and at most `ctas` (even)."""
    return T.min(T.ceildiv(T.ceildiv(M, tile_tokens) * -(-N // tile_weights), PAIR) * PAIR, ctas)


def tiles_of(cta, M, N, tile_tokens, tile_weights, ctas):
    """Share the tiles of an (M, N) result out to at most `ctas` CTAs, of which this is number `cta`."""
    m_tiles, n_tiles = T.ceildiv(M, tile_tokens), -(-N // tile_weights)
    workers = T.min(m_tiles * n_tiles, ctas)
    turns = (m_tiles * n_tiles - cta + workers - 1) // workers
    return Tiles(tile_tokens, tile_weights, m_tiles, n_tiles, cta, workers, turns)


@T.macro
def locate(at, tiles, turn):
    """at[:] = first token and first weight of its tile number `turn`; tiles go down M in panels, then N."""
    tile = tiles.first + turn * tiles.workers
    panel = tile // (TILES_PER_PANEL * tiles.n_tiles)
    height = T.min(TILES_PER_PANEL, tiles.m_tiles - panel * TILES_PER_PANEL)
    place = tile - panel * TILES_PER_PANEL * tiles.n_tiles
    at[0] = (panel * TILES_PER_PANEL + place % height) * tiles.tokens
    at[1] = place // height * tiles.weights
