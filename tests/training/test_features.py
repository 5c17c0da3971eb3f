"""Features of a frozen backbone, kept on disk: the same training, and nothing stale is ever used."""

import errno
import json
import logging
import shutil
import threading
import types

import pytest
import torch
from torch import nn

from segkit import models
from segkit.data.sampling import collate as collate_images
from segkit.training import features, inputs, state, train
from segkit.training.distributed import World
from segkit.training.features import CachedFeatures, cached_features, check_frozen, check_room, weights_digest

CPU = World(0, 1, torch.device("cpu"))
STILL = {"cache_features": True, "flip": 0.0, "scale": (1.0, 1.0), "exact_batchnorm": False, "aux_weight": 0}


class FrozenNet(nn.Module):
    """A frozen backbone at stride 4, and a head with batch norm and dropout."""

    def __init__(self, *, frozen: bool = True) -> None:
        super().__init__()
        self.frozen = frozen
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.ReLU())
        self.backbone.requires_grad_(not frozen)
        self.head = nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.1), nn.Conv2d(6, 3, 1))
        self.images = 0  # that went through the backbone
        self.train()

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, images):
        self.images += len(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(images)

    def forward(self, x, *, features=None, image_size=None):
        features, size = (self.features(x), x.shape[-2:]) if features is None else (features, image_size)
        return {"out": nn.functional.interpolate(self.head(features), size, mode="bilinear")}


def network(**options):
    torch.manual_seed(0)
    return FrozenNet(**options)


@pytest.fixture
def go(tiny, tmp_path):
    """Trains the frozen network; keywords of the recipe in ``changes``."""

    def run(name="run", changes=(), **options):
        options = {
            "model": network(),
            "train_set": tiny.TinySet(),
            "val_set": tiny.TinySet(5, "val", 1),
        } | options
        how = tiny.tiny_recipe(**(STILL | dict(changes)))
        return train(how, out_dir=tmp_path / name, device="cpu", **options)

    return run


@pytest.fixture
def fill(tiny, tmp_path):
    """Caches the features of the tiny set."""

    def run(model=None, dataset=None, world=CPU, **options):
        options = {"batch_size": 1, **options}
        return cached_features(
            tiny.TinySet() if dataset is None else dataset,
            model or network(),
            tmp_path,
            world=world,
            size=(32, 48),
            **options,
        )

    return run


def losses(run):
    return [(entry["step"], entry["loss"], entry["parts"]) for entry in run.steps]


def test_the_losses_are_those_of_running_the_backbone_each_step(go, one_thread, tmp_path):
    plain, cached = go("plain", {"cache_features": False}), go("cached")
    assert plain.model.images == 3 * 12 + 4 * 5  # three epochs of 12; 5 measured after each and at the end
    assert cached.model.images == 4 + 12 + 4 * 5  # before all a batch of the first one, for size and type
    assert losses(cached) == losses(plain) and len(losses(plain)) == 9
    assert [entry["miou"] for entry in cached.epochs] == [entry["miou"] for entry in plain.epochs]
    assert cached.evaluation.matrix.tolist() == plain.evaluation.matrix.tolist()
    first, second = (state.load(tmp_path / name / "final.pt")["model"] for name in ("plain", "cached"))
    assert first.keys() == second.keys() and "backbone.0.weight" in first  # a whole model
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.2.weight"], network().state_dict()["head.2.weight"])

    again = go("again")  # takes the features from disk
    assert again.model.images == 4 + 4 * 5
    assert losses(again) == losses(plain)


def test_the_kits_model(go, one_thread):
    """DenseASPP on a small DenseNet; the head's wiring does not matter to the features."""
    runs = []
    for head, cached in (("dense", False), ("dense", True), ("parallel", True)):
        torch.manual_seed(0)
        options = {"backbone": "small", "dilations": (1, 2), "growth": 4, "squeeze": 8, "head": head}
        model = models.build("denseaspp-student4", num_classes=3, frozen=True, **options)
        changes = {"epochs": 1, "cache_features": cached}
        runs.append(go(f"{head}-{cached}", changes, model=model, limit_train=4))
    assert losses(runs[1]) == losses(runs[0]) != losses(runs[2])
    folders = {path.parent for path in runs[0].folder.parent.glob("features-*/*.pt")}
    assert len(folders) == 1 and len(list(folders.pop().glob("*.pt"))) == 4


def test_killed_and_resumed_bit_for_bit(go, one_thread):
    whole = losses(go("whole"))

    def stop(entry):
        if entry["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go("stopped", checkpoint_steps=2, on_step=stop)
    for folder in (path for path in go("whole", resume=True).folder.parent.glob("features-*")):
        shutil.rmtree(folder)  # the features are computed anew, from the weights that come back
    resumed = go("stopped", resume=True, model=network())
    assert losses(resumed) == whole


def test_what_is_kept(fill, tiny, tmp_path, caplog):
    model = network()
    cache = fill(model)
    images = tiny.TinySet()
    assert isinstance(cache, CachedFeatures)
    assert len(cache) == 12 and (cache.space, cache.split) == (images.space, "train")
    assert cache.names == images.names and cache.folder.parent == tmp_path
    sample = cache[3]
    assert sample["name"] == images[3]["name"] and torch.equal(sample["labels"], images[3]["labels"])
    assert torch.equal(cache.label_map(3), images[3]["labels"])
    pixels = images[3]["image"][None].float() / 255
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (features.IMAGENET_MEAN, features.IMAGENET_STD)
    )
    expected = model.backbone((pixels - mean) / std)[0]
    torch.testing.assert_close(sample["features"], expected)
    assert sample["features"].dtype == torch.float32 and not sample["features"].requires_grad
    assert sample["features"].shape == (6, 8, 12)
    assert len(list(cache.folder.glob("*.pt"))) == 12 and not list(cache.folder.glob(".*"))
    told = json.loads((cache.folder / features.KEY).read_text())
    assert (told["shape"], told["dtype"]) == ([6, 8, 12], "float32")
    assert told["weights"] == weights_digest(model.backbone)
    size = max(path.stat().st_size for path in cache.folder.glob("*.pt"))
    assert 6 * 8 * 12 * 4 < size <= 6 * 8 * 12 * 4 + features.OVERHEAD
    assert "the features of 12 images take 76.8 kB, 6.4 kB each, in " in caplog.text
    assert "and stay there until it is deleted" in caplog.text
    caplog.clear()
    assert fill().folder == cache.folder and not caplog.text


def test_batches_have_the_order_of_images(fill, tiny):
    recipe = tiny.tiny_recipe(**STILL)
    ways = [inputs.Batches(dataset, recipe, CPU) for dataset in (tiny.TinySet(), fill())]
    for images, kept in zip(*(way.epoch(1, start=1) for way in ways), strict=True):
        assert kept.keys() == {"features", "labels", "name"}
        assert kept["name"] == images["name"] and kept["features"].shape == (4, 6, 8, 12)
        assert torch.equal(kept["labels"], images["labels"]) and kept["labels"].dtype == torch.int64
    samples = [fill()[0], {**fill()[1], "labels": torch.zeros(2, 2)}]
    with pytest.raises(ValueError, match="one batch needs one size"):
        features.collate(samples)
    assert collate_images([tiny.TinySet()[0]])["image"].shape == (1, 3, 32, 48)


def test_reading_by_other_processes_and_no_random_number_taken(fill, tiny):
    alone, model = fill(dataset=tiny.TinySet(4)), network()
    shutil.rmtree(alone.folder)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    cache = fill(model, tiny.TinySet(4), workers=1)
    assert torch.rand(1) == expected
    assert cache.images == alone.images and model.images == 1 + 4


def test_the_last_batch_is_filled_up(fill, tiny):
    model, sizes = network(), []
    model.backbone.register_forward_pre_hook(lambda module, images: sizes.append(len(images[0])))
    cache = fill(model, tiny.TinySet(7), batch_size=3)
    assert sizes == [3] * 4  # one image for size and type, then seven
    for index in range(7):
        expected = features.compute(model, [cache.dataset[index]["image"]], 3, CPU.device)
        assert torch.equal(cache[index]["features"], expected[0]) and len(expected) == 1
    assert fill(model, tiny.TinySet(7), batch_size=2).folder != cache.folder


def test_an_interrupted_filling_goes_on(fill, tmp_path):
    class Interrupted(FrozenNet):
        def features(self, images):
            if self.images == 6:
                raise KeyboardInterrupt
            return super().features(images)

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        fill(Interrupted())
    (folder,) = tmp_path.glob("features-*")
    assert len(list(folder.glob("*.pt"))) == 5 and not list(folder.glob(".*"))
    model = network()
    fill(model)
    assert model.images == 1 + 7


def test_a_write_that_fails_leaves_no_file(fill, tmp_path, monkeypatch):
    def full(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        fill()
    (folder,) = tmp_path.glob("features-*")
    assert [path.name for path in folder.iterdir()] == [features.KEY]


def test_a_changed_image_is_computed_anew(fill, tiny):
    class Changed(tiny.TinySet):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index == 7:
                sample["image"][0, 0, 0] += 1  # one value of one pixel; same name, same size
            return sample

    before, model = fill(), network()
    after = fill(model, Changed())
    assert model.images == 1 + 1
    assert after.folder == before.folder and after.images[7] != before.images[7]
    assert after.images[:7] + after.images[8:] == before.images[:7] + before.images[8:]
    assert not torch.equal(after[7]["features"], before[7]["features"])


@pytest.mark.parametrize("part", ["weight", "statistics", "layers"])
def test_another_backbone_has_a_folder_of_its_own(fill, part):
    before, model = fill(), network()
    if part == "weight":
        model.backbone[0].weight.data[0, 0, 0, 0] += 1e-6
    elif part == "statistics":
        model.backbone[1].running_mean[0] = 1e-6
    else:
        model.backbone[1].eps = 1e-4
    after = fill(model)
    assert after.folder != before.folder and model.images == 1 + 12
    assert after.images == before.images


def test_what_names_the_folder():
    model, example = network(), torch.zeros(6, 8, 12)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    told = features.describe(model, example, 4, cpu, False)
    others = [
        features.describe(model, example.bfloat16(), 4, cpu, False),
        features.describe(model, example[:, :4], 4, cpu, False),
        features.describe(model, example, 2, cpu, False),
        features.describe(model, example, 4, gpu, False),
        features.describe(model, example, 4, gpu, True),
    ]
    assert all(other != told for other in others) and others[3] != others[4]
    model.head[2].weight.data += 1  # the head may be any
    assert features.describe(model, example, 4, cpu, False) == told
    assert json.loads(json.dumps(told)) == told
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert features.describe(synchronized, example, 4, cpu, False) == told


def test_a_file_under_another_name_is_never_used(fill):
    cache = fill()
    shutil.copy(cache.path(2), cache.path(5))
    with pytest.raises(ValueError, match=r"does not hold the features of train_005: delete .*\.pt; --resume"):
        cache[5]
    model = network()
    again = fill(model)
    assert model.images == 1 + 1
    assert torch.equal(
        again[5]["features"], features.compute(model, [again.dataset[5]["image"]], 1, CPU.device)[0]
    )


@pytest.mark.parametrize("damage", ["cut short", "emptied", "no checkpoint", "gone"])
def test_a_damaged_file_is_never_used(fill, damage):
    cache = fill()
    path = cache.path(4)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "no checkpoint":
        torch.save(torch.zeros(3), path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"the features of train_004 are (damaged|gone)"
    ):
        cache[4]
    model = network()
    assert torch.isfinite(fill(model)[4]["features"]).all()
    assert model.images == 1 + 1 and path.stat().st_size == len(content)


def test_another_function_of_the_same_weights_is_refused(fill):
    class Doubled(FrozenNet):
        def features(self, images):
            return 2 * super().features(images)

    fill()
    torch.manual_seed(0)
    with pytest.raises(
        ValueError, match=r"other features of train_000 than this model .* was the code changed"
    ):
        fill(Doubled())


def test_a_full_disk_is_told_beforehand(fill, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=70_000))
    with pytest.raises(
        OSError, match=r"12 images take 76.8 kB, 6.4 kB each, and only 70 kB are free; use"
    ) as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.glob("features-*/*.pt"))


def test_sizes_are_said_for_people(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**12))
    check_room(tmp_path, 2975, torch.empty(1024, 64, 128, device="meta"))
    assert "the features of 2,975 images take 99.8 GB, 33.6 MB each" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        check_room(tmp_path, 1, torch.empty(1), tell=False)
    assert not caplog.text


def test_images_of_another_size_are_refused(fill, go, tiny):
    class Mixed(tiny.TinySet):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index == 5:
                sample = {**sample, "image": sample["image"][:, :16], "labels": sample["labels"][:16]}
            return sample

    with pytest.raises(
        ValueError, match=r"train_005 is 16x48: cache_features=True .* the crop's 32x48; give"
    ):
        fill(dataset=Mixed())
    with pytest.raises(ValueError, match=r"train_000 is 32x48: .* the crop's 32x40"):
        go("run", {"crop": (32, 40)})
    with pytest.raises(ValueError, match="the data set is empty"):
        fill(dataset=[])


def test_a_backbone_that_is_trained_is_refused(go, tiny):
    with pytest.raises(ValueError, match="TinyNet has not both a backbone and features"):
        go("run", model=tiny.TinyNet())
    assert not list(tiny.Path(go("other").folder).parent.glob("run"))  # refused before a run begins
    with pytest.raises(ValueError, match=r"FrozenNet's the parameter 0.weight is trained, .* freeze it"):
        check_frozen(network(frozen=False))
    half = network()
    half.frozen = False  # its parameters stay frozen, its statistics would drift
    with pytest.raises(ValueError, match="FrozenNet's the layer itself is in train mode"):
        check_frozen(half.eval())
    assert not half.training


class Threads(World):
    """A world of threads, which exchange as processes do."""

    def gather(self, item):
        self.items[self.rank] = item
        self.barrier.wait(20)
        found = list(self.items)
        self.barrier.wait(20)
        return found


@pytest.fixture
def fill_twice(fill):
    """Caches features in two processes; returns what each of them gives or raises."""

    def run(models_, **options):
        items, barrier, found = [None, None], threading.Barrier(2), [None, None]

        def work(rank):
            world = Threads(rank, 2, torch.device("cpu"))
            object.__setattr__(world, "items", items)
            object.__setattr__(world, "barrier", barrier)
            try:
                found[rank] = fill(models_[rank], world=world, **options)
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return run


def test_each_process_computes_its_share(fill, fill_twice, tmp_path):
    alone, models_ = fill(), [network(), network()]
    for path in alone.folder.glob("*.pt"):
        path.rename(tmp_path / path.name)
    shutil.copy(tmp_path / alone.path(1).name, alone.path(1))  # one is there already
    found = fill_twice(models_)
    assert sorted(model.images for model in models_) == [1 + 5, 1 + 6]
    assert found[0].images == found[1].images == alone.images
    for index in range(12):
        expected = state.load(tmp_path / alone.path(index).name)["features"]
        assert torch.equal(found[1][index]["features"], expected)


@pytest.mark.parametrize("full", ["0", "1"])
def test_all_processes_have_room_or_none(full, fill_twice, tmp_path, monkeypatch):
    """The main process looks, before any writes: another one would look when the disk has filled up."""

    def usage(path):
        return types.SimpleNamespace(free=70_000 if threading.current_thread().name == full else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = fill_twice([network(), network()])
    written = len(list(tmp_path.glob("features-*/*.pt")))
    if full == "0":
        assert all(isinstance(error, OSError) and error.errno == errno.ENOSPC for error in found)
        assert all("only 70 kB are free" in str(error) for error in found) and written == 0
    else:
        assert all(isinstance(cache, CachedFeatures) for cache in found) and written == 12


def test_images_that_are_alike_are_computed_once(fill_twice, tiny, monkeypatch):
    class Alike(tiny.TinySet):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index == 7:  # would be another process's than the third
                sample["image"] = super().__getitem__(2)["image"]
            return sample

    written, write = [], CachedFeatures.write
    monkeypatch.setattr(
        CachedFeatures,
        "write",
        lambda cache, index, maps: written.append(cache.path(index)) or write(cache, index, maps),
    )
    models_ = [network(), network()]
    first, second = fill_twice(models_, dataset=Alike())
    assert len(written) == len(set(written)) == 11
    assert sum(model.images for model in models_) == 2 + 11
    assert first.images[7] == second.images[2]
    assert torch.equal(first[7]["features"], second[2]["features"])
    assert torch.equal(first[7]["labels"], Alike()[7]["labels"])
    assert fill_twice([network(), network()], dataset=Alike())[1].images == first.images
    assert len(written) == 11


def test_processes_that_share_no_folder_are_told(fill):
    class Apart(World):
        """The first of two processes; the second says that it does its half, and nothing of it is here."""

        def gather(self, item):
            if not isinstance(item, list):
                return [item, item]
            other = [part + 1 if isinstance(part, int) else part[::-1] for part in item]  # numbers or hashes
            return [item, other]

    with pytest.raises(FileNotFoundError, match=r"written by another process, .* that all machines share"):
        fill(world=Apart(0, 2, torch.device("cpu")))
