"""The pictures that a command names: one request for each, so that a folder of them is one command."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

EACH = "picture"  # the field of which a command takes several
BESIDE = "mask"  # the field that may be a folder of one each, told apart by name


class Named(NamedTuple):
    """A picture file, and its name within the folder that was named."""

    file: Path
    name: Path


def each(fields: Mapping[str, Any], out: Path | None = None) -> list[dict[str, Any]]:
    """The fields of each request: those that are given, with one of the pictures in each. What lies in `out`, where pictures
    are written, within a folder that is named is not taken.

    Raises `ValueError` for a name of nothing, a folder without pictures, and a picture without a mask of its name where a
    folder of masks is given.
    """
    if not fields.get(EACH):
        return [dict(fields)]
    for field, names in ((EACH, fields[EACH]), (BESIDE, [fields.get(BESIDE)])):
        if "" in names:
            raise ValueError(f"{field}: an empty name; give the path of a picture or a folder")
    masks = Path(fields[BESIDE]) if BESIDE in fields and Path(fields[BESIDE]).is_dir() else None
    others = [folder for folder in (masks, out) if folder is not None]
    found = [one for name in fields[EACH] for one in _inside(Path(name), others)]
    told = _masks(masks, found) if masks else [{}] * len(found)
    return [{**fields, **mask, EACH: str(one.file)} for one, mask in zip(found, told, strict=True)]


def _inside(path: Path, others: Sequence[Path]) -> Iterator[Named]:
    """The picture files of a folder and its folders, by name, without those of `others` within it; another path as it is.

    Formats that are not read are among them, so that each is told as it fails, and not passed over.
    """
    if not path.is_dir():
        yield Named(path, Path(path.name))
        return
    from sfumato.data import layout  # which imports torch: only a folder waits for it

    here = path.resolve()
    apart = {folder.resolve() for folder in others if here in folder.resolve().parents}
    several = layout.pictures(path, layout.SUFFIXES | layout.UNREAD)
    found = sorted(f for f in several if f.is_file() and not apart.intersection(f.resolve().parents))
    if not found:
        raise ValueError(f"{path} holds no pictures; known endings: {', '.join(sorted(layout.SUFFIXES))}")
    yield from (Named(file, file.relative_to(path)) for file in found)


def _masks(folder: Path, pictures: list[Named]) -> Iterator[dict[str, str]]:
    """The mask of each picture: the file of its name in the same folder within, or of its bare name where no other picture
    is called so; the ending may be another."""
    from sfumato.data import layout

    drawn = sorted((f for f in layout.pictures(folder) if f.suffix.lower() != ".npy"), reverse=True)
    files = {file.relative_to(folder).with_suffix(""): file for file in drawn}
    stems = [one.name.stem for one in pictures]
    for one in pictures:
        bare = Path(one.name.stem) if stems.count(one.name.stem) == 1 else None
        mask = files.get(one.name.with_suffix("")) or files.get(bare or one.name)
        if mask is None:
            raise ValueError(f"{folder} holds no mask for {one.file}; name it {folder / one.name.with_suffix('.png')}")
        yield {BESIDE: str(mask)}
