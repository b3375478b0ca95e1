"""Names for the results of scenes: short where they can be, and never the same twice."""

import re
from collections import defaultdict
from collections.abc import Sequence

_ODD = re.compile(r"[^\w.+ ()\-]+")
_LONGEST = 150  # a name grows by suffixes, and file systems end at 255 bytes


def unique_names(scenes: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Return a name for each (stem, folders): the stem, behind the folders that tell it from its namesakes."""
    stems = [_tidy(stem) for stem, _ in scenes]
    names = list(stems)
    deepest = max((len(folders) for _, folders in scenes), default=0)
    for depth in range(1, deepest + 1):
        alike: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(names):
            alike[name].append(number)
        for number in (number for group in alike.values() if _are_apart(group, scenes) for number in group):
            names[number] = "-".join((*map(_tidy, scenes[number][1][-depth:]), stems[number]))
    return _numbered(names)


def _are_apart(group: list[int], scenes: Sequence[tuple[str, tuple[str, ...]]]) -> bool:
    """Whether the scenes of a group lie in different folders, which can tell them apart."""
    return len({scenes[number][1] for number in group}) > 1


def _numbered(names: list[str]) -> list[str]:
    """Return `names` with a number behind each that is still taken (`scene.tif` beside `scene.tiff`)."""
    taken: set[str] = set()
    for place, name in enumerate(names):
        number = 1
        while names[place] in taken:
            number += 1
            names[place] = f"{name}-{number}"
        taken.add(names[place])
    return names


def _tidy(text: str) -> str:
    """Return what of a text can stand in a file name anywhere; ids from STAC hold anything."""
    return _ODD.sub("_", text).strip(". ")[:_LONGEST] or "scene"
