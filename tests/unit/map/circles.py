"""Circles of files that import each other."""

from __future__ import annotations

from collections import deque

from tests.unit.map.source import Graph


def circles(graph: Graph) -> list[str]:
    """A shortest circle through every module that lies on one, each told once: ``a -> b -> a``."""
    told = {}
    for start in sorted(graph):
        way = _back(graph, start)
        if way:
            told.setdefault(frozenset(way), " -> ".join([*way, start]))
    return list(told.values())


def _back(graph: Graph, start: str) -> list[str]:
    """The modules of a shortest way from a module back to itself; empty where there is none."""
    ways = deque([[start]])
    seen = set()
    while ways:
        way = ways.popleft()
        for other in sorted(graph[way[-1]]):
            if other == start:
                return way
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []
