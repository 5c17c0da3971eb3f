"""ADE20K in the form of the scene parsing challenge, SceneParse150 (Zhou et al., CVPR 2017).

    ROOT/images/training/ADE_train_%08d.jpg           20,210 images
    ROOT/images/validation/ADE_val_%08d.jpg           2,000 images
    ROOT/annotations/<folder>/<the same name>.png     0 = no class, 1 to 150 = the classes

That is the folder ADEChallengeData2016/ of its zip file. Splits: train (the folder training), val (the
folder validation) and trainval. 0 is ignored (255), and 1 to 150 become the train ids 0 to 149.

The 3,352 test images (release_test/testing/, listed in release_test/list.txt) have no labels, so they are no
split here. `python -m segkit.predict --ids` labels them in the numbers of a submission: train id + 1.
"""

from collections.abc import Iterator
from pathlib import Path

from segkit.data.labels import ADE20K150
from segkit.data.pairs import Pair, PairDataset, check_choice, files

FOLDERS = {"train": "training", "val": "validation"}
SPLITS = (*FOLDERS, "trainval")
HOW_TO_GET = (
    "download http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (0.9 GB), see "
    "http://sceneparsing.csail.mit.edu, and unpack it there, or give its folder as --data-dir"
)


class ADE20K(PairDataset):
    """Images and labels of one split.

    Args:
        root: the folder that holds images/ and annotations/.
        split: "train", "val" or "trainval".

    Raises:
        FileNotFoundError: if a folder or file is missing; says which and where to get it.
        ValueError: for an unknown split, or an unusable file.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        if split == "test":
            raise ValueError(
                "ADE20K's test images have no public labels, so they are no split; to label them, run "
                "`python -m segkit.predict IMAGE ... --ids --checkpoint FILE`"
            )
        check_choice("ADE20K split", split, SPLITS)
        self.root = Path(root)
        parts = FOLDERS if split == "trainval" else (split,)
        pairs = [pair for part in parts for pair in _pairs(self.root, FOLDERS[part])]
        train_ids = {0: 255, **{index + 1: index for index in range(ADE20K150.num_classes)}}
        super().__init__(pairs, space=ADE20K150, split=split, train_ids=train_ids)


def _pairs(root: Path, folder: str) -> Iterator[Pair]:
    images, labels = root / "images" / folder, root / "annotations" / folder
    for path in (images, labels):
        if not path.is_dir():
            raise FileNotFoundError(f"ADE20K needs the folder {path}, which is missing: {HOW_TO_GET}")
    found = files(images, "*.jpg")
    if not found:
        raise FileNotFoundError(f"{images} holds no *.jpg: {HOW_TO_GET}")
    stems = {path.stem for path in found}
    for path in files(labels, "*.png"):
        if path.stem not in stems:
            raise FileNotFoundError(
                f"{images / path.stem}.jpg is missing, the image of {path}. "
                "Restore it, or remove the label file"
            )
    for path in found:
        yield Pair(path.stem, path, labels / f"{path.stem}.png")
