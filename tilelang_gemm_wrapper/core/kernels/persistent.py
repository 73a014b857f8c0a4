"""Which tiles each CTA of a persistent kernel computes, and in which order."""

from typing import Any, NamedTuple

import tilelang.language as T

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
