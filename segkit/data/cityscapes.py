"""Cityscapes (Cordts et al., CVPR 2016) in its official folders; also what `streets` writes.

    ROOT/leftImg8bit/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png
    ROOT/gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png
    ROOT/gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_instanceIds.png

Splits: train (2975 images in the official set), val (500), test (1525, its labels all void) and trainval.
"""

from collections.abc import Iterator
from pathlib import Path

from segkit.data.labels import CITYSCAPES19, CITYSCAPES20, CITYSCAPES_IDS
from segkit.data.pairs import Pair, PairDataset, check_choice, files

SPLITS = ("train", "val", "test", "trainval")
HOW_TO_GET = (
    "register at https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip (11 GB) and "
    "gtFine_trainvaltest.zip (241 MB) and unpack both into one folder"
)


class Cityscapes(PairDataset):
    """Images and fine labels of one split.

    Args:
        root: the folder that holds leftImg8bit/ and gtFine/.
        split: "train", "val", "test" or "trainval".
        num_classes: 19, where all labels that Cityscapes does not evaluate are ignored; or 20, where they
            are class 19, background, and nothing is ignored.
        instances: read the instance ids too: id * 1000 + number, or the bare id where a thing has no number.

    Raises:
        FileNotFoundError: if a folder or file is missing; says which and where to get it.
        ValueError: for an unknown split or number of classes, or an unusable file.
    """

    def __init__(
        self, root: str | Path, split: str, *, num_classes: int = 19, instances: bool = False
    ) -> None:
        check_choice("Cityscapes split", split, SPLITS)
        if num_classes not in (19, 20):
            raise ValueError(f"Cityscapes has num_classes 19, or 20 with background, not {num_classes}")
        space, train_ids = CITYSCAPES19, CITYSCAPES_IDS
        if num_classes == 20:
            space = CITYSCAPES20
            train_ids = {id: 19 if train_id == 255 else train_id for id, train_id in CITYSCAPES_IDS.items()}
        self.root = Path(root)
        parts = ("train", "val") if split == "trainval" else (split,)
        pairs = [pair for part in parts for pair in _pairs(self.root, part)]
        super().__init__(pairs, space=space, split=split, train_ids=train_ids, instances=instances)


def _pairs(root: Path, part: str) -> Iterator[Pair]:
    images, truth = root / "leftImg8bit" / part, root / "gtFine" / part
    for folder in (images, truth):
        if not folder.is_dir():
            raise FileNotFoundError(f"Cityscapes needs the folder {folder}, which is missing: {HOW_TO_GET}")
    stems = {
        (path.parent.name, path.name.removesuffix("_leftImg8bit.png")): path
        for path in files(images, "*/*_leftImg8bit.png")
    }
    if not stems:
        raise FileNotFoundError(f"{images} holds no <city>/*_leftImg8bit.png: {HOW_TO_GET}")
    for path in files(truth, "*/*_gtFine_labelIds.png"):
        city, stem = path.parent.name, path.name.removesuffix("_gtFine_labelIds.png")
        if (city, stem) not in stems:
            raise FileNotFoundError(
                f"{images / city / stem}_leftImg8bit.png is missing, the image of {path}. "
                "Restore it, or remove the label file"
            )
    for (city, stem), path in stems.items():
        label = f"{truth / city / stem}_gtFine_"
        yield Pair(stem, path, Path(f"{label}labelIds.png"), Path(f"{label}instanceIds.png"))
