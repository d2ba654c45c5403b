"""Readable made-up titles for synthetic items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ADJECTIVES = (
    "Silent Crimson Hollow Golden Restless Forgotten Electric Distant Bitter Gentle Broken Hidden Burning Frozen "
    "Wandering Last Second Paper Velvet Midnight Reckless Quiet Scarlet Borrowed Crooked Endless Fading Honest "
    "Invisible Lonely Marble Northern Painted Rising Secret Sleeping Stolen Tender Unlikely Winter"
).split()
NOUNS = (
    "Harbour Garden Engine Letter Mountain Orchard Circus Detective Kingdom Voyage Mirror Station Summer Promise "
    "Stranger Valley Lantern Empire Daughter Machine Island Waltz Compass Bridge Carnival Meadow Signal Thief "
    "Archive Balcony Canyon Cathedral Diary Falcon Glacier Horizon Journey Labyrinth Monsoon Nightfall"
).split()
PLACES = "Lisbon Kyoto Havana Prague Tangier Oslo Cairo Montreal Naples Jaipur".split()


def make_titles(count: int, years: Sequence[int], seed: int) -> list[str]:
    """`count` different titles with their years, such as "The Silent Harbour (1987)"."""
    names = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    names += [f"{adjective} {noun} of {place}" for adjective in ADJECTIVES for noun in NOUNS for place in PLACES]
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    return [_sequel(names[order[i % len(names)]], i // len(names) + 1, years[i]) for i in range(count)]


def _sequel(name: str, part: int, year: int) -> str:
    return f"{name} ({year})" if part == 1 else f"{name} {part} ({year})"
