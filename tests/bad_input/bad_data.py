"""Images and .beton files that are missing, damaged, or not what was meant."""

from __future__ import annotations

import shutil
from pathlib import Path

from corpus import PAGE, Case, Make, all_of, cut, entry, flipped, nothing, removed, wrote

PHOTOS = "train small.yaml"
SET = "train small.yaml --set data.path=set"
WRITE = "data write folder --source photos --workers 0 --out new"
TRAIN, VAL = "set/train.beton", "set/val.beton"
EIGHT = ("cat/16", "cat/18", "cat/20", "cat/22", "dog/17", "dog/19", "dog/21", "dog/23")
LABEL = 24 + 2 * 1041 + 16
"""Where the first image's label lies in a .beton file: behind header, fields and the entry of the image."""


def gone(folder: str) -> Make:
    return lambda: shutil.rmtree(folder)


def moved_up(folder: str) -> None:
    """The images of all classes, in one folder."""
    for image in list(Path(folder).rglob("*.png")):
        image.rename(Path(folder) / image.name)
    for name in ("cat", "dog"):
        Path(folder, name).rmdir()


def emptied(folder: str) -> Make:
    return lambda: [image.unlink() for image in Path(folder).iterdir()]


def foreign() -> None:
    Path("new").mkdir()
    Path("new/val.beton").write_text("mine")


def spoilt(folder: str) -> Make:
    return lambda: [image.write_text("no image") for image in Path(folder).rglob("*.png")]


READ = [
    Case(
        "no data",
        nothing,
        f"{PHOTOS} --set data.path=nowhere",
        "the data set folder has no train and val: HOME/nowhere has neither a .beton file of that"
        " name nor a folder of images. Write it: `acdc data write folder --source /path/to/folder "
        "--out nowhere`. Or give its location: --set data.path=FOLDER",
    ),
    Case(
        "no ImageNet",
        nothing,
        "train resnet50_95",
        "the data set imagenet has no train and val: HOME/data/imagenet has neither …. Write it: "
        "`acdc data write imagenet --source /path/to/imagenet --out data/imagenet`. …",
    ),
    Case(
        "misspelt data set",
        nothing,
        f"{PHOTOS} --set data.path=null --set data.name=cfar10",
        "the data set cfar10 has no train and val: HOME/data/cfar10 has neither …; did you mean "
        "cifar10? Write it: …--source /path/to/cfar10 --out data/cfar10`. …",
    ),
    Case(
        "data that are a file",
        nothing,
        f"{PHOTOS} --set data.path=small.yaml",
        "the data set folder has no train and val: HOME/small.yaml is a file; --set data.path=FOLDER names a folder",
    ),
    Case(
        "no validation images",
        gone("photos/val"),
        PHOTOS,
        "the data set folder has no val: HOME/photos has neither …--out photos`. …",
    ),
    Case(
        "no training images",
        gone("photos/train"),
        PHOTOS,
        "the data set folder has no train: HOME/photos has neither …",
    ),
    Case(
        "file where images should be",
        all_of(gone("photos/val"), wrote("photos/val", "")),
        PHOTOS,
        "the data set folder has no val: HOME/photos …",
    ),
    Case(
        "class missing in validation",
        gone("photos/val/cat"),
        PHOTOS,
        "photos: train and val hold different classes; only one of them has cat. Make both from the same source.",
    ),
    Case(
        "class without images",
        emptied("photos/train/cat"),
        PHOTOS,
        "photos/train/cat: no images (.jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp) in this class's folder",
    ),
    Case(
        "images without class folders",
        lambda: moved_up("photos/train"),
        PHOTOS,
        "photos/train: holds 16 images but no class folders. Sort the images into one folder per class, as in train/.",
    ),
    Case(
        "image that is none",
        wrote("photos/train/cat/00.png", "none"),
        PHOTOS,
        "photos/train/cat/00.png: the image cannot be read (…). Repair or remove it, or write the set"
        " without such images: `acdc data write … --skip-bad`.",
        ("runs",),
    ),
    Case(
        "image that is cut off",
        cut("photos/train/cat/00.png", 500),
        PHOTOS,
        "photos/train/cat/00.png: the image …",
        ("runs",),
    ),
    Case(
        "larger batch than data",
        nothing,
        f"{PHOTOS} --set data.batch_size=100",
        "data.batch_size 100 is more than the 16 images of folder, so an epoch would have no step. Lower it.",
    ),
    Case(
        "FFCV without .beton",
        nothing,
        f"{PHOTOS} --set data.loader=ffcv",
        "FFCV reads .beton files, and photos holds images: `acdc data write folder --source photos` "
        "makes them. Or let torchvision do it: --set data.loader=torch",
    ),
    Case(
        ".beton missing",
        removed(TRAIN),
        SET,
        "the data set folder has no train: HOME/set has neither …--out set`. …",
    ),
    Case(
        ".beton empty",
        wrote(TRAIN, ""),
        SET,
        "set/train.beton: has 0 bytes, its manifest says …. Write it again (`acdc data write "
        "--force`) or fetch another copy.",
    ),
    Case(
        ".beton truncated",
        cut(TRAIN, 80_000),
        SET,
        "set/train.beton: has 80000 bytes, …",
    ),
    Case(
        ".beton of another version",
        flipped(TRAIN, 0),
        SET,
        "set/train.beton: it is version 253 of the format or not a .beton file; only version 2 is read. "
        "Write it again (`acdc data write`) or fetch another copy.",
    ),
    Case(
        ".beton with another label",
        flipped(TRAIN, LABEL),
        SET,
        "set/train.beton: 1 of its 8 MiB pages changed since it was written: page 0 (header and labels). …",
    ),
    Case(
        ".beton changed since its manifest",
        flipped(TRAIN, PAGE),
        "data check set/train.beton",
        "set/train.beton: 1 of its 8 MiB pages …: page 1 (16 images between 0 and 15, allocation table). …",
    ),
    Case(
        "both .beton damaged",
        all_of(cut(TRAIN, 9), cut(VAL, 9)),
        "data check set",
        "set/train.beton: has 9 bytes, …\nset/val.beton: has 9 bytes, …",
    ),
    Case(
        "manifest missing",
        removed(f"{TRAIN}.json"),
        SET,
        "set/train.beton has no manifest (train.beton.json): it was not written by `acdc data write`,"
        " or not to the end. Write it again.",
    ),
    Case(
        "manifest broken",
        wrote(f"{TRAIN}.json", "{"),
        SET,
        "set/train.beton.json is damaged (…); write the data set again",
    ),
    Case(
        "manifest of nothing",
        wrote(f"{TRAIN}.json", "[]"),
        SET,
        "set/train.beton.json: not a manifest of version 1. Write the data set again with this acdc.",
    ),
    Case(
        "manifest endlessly deep",
        wrote(f"{TRAIN}.json", 100_000 * "["),
        SET,
        "set/train.beton.json is damaged (it is nested too deep); write the data set again",
    ),
    Case(
        "manifest of another version",
        entry(f"{TRAIN}.json", version=2),
        SET,
        "set/train.beton.json: not a manifest …",
    ),
    Case(
        "manifest with another key",
        entry(f"{TRAIN}.json", colour="red"),
        SET,
        "set/train.beton.json: keys are missing or unknown. Write the data set again.",
    ),
    Case(
        "manifest with a wrong type",
        entry(f"{TRAIN}.json", page_crc32=7),
        SET,
        "set/train.beton.json: page_crc32 is not a value that `acdc data write` writes. Write the data set again.",
    ),
    Case(
        "manifest of another class count",
        entry(f"{TRAIN}.json", classes=3),
        SET,
        "set/train.beton.json: 3 classes, but 2 names and 2 counts. Write the data set again.",
    ),
    Case(
        "manifest of other classes",
        entry(f"{TRAIN}.json", class_names=["cat", "eel"]),
        SET,
        "set: train and val hold different classes; only one of them has dog, eel. …",
    ),
    Case(
        "check of nothing",
        nothing,
        "data check nowhere",
        "nowhere: there is no such file, folder or written set (sets: <sets>). `acdc data write` makes one.",
    ),
    Case(
        "check of another file",
        nothing,
        "data check small.yaml",
        "small.yaml is not a .beton file; give one, the folder that holds them, or a set's name",
    ),
    Case(
        "check of images",
        nothing,
        "data check photos",
        "photos: no .beton files, which are what is checked, in this folder. `acdc data write folder --source photos` "
        "makes them of images, and reports every image that cannot be read.",
    ),
]

WRITTEN = [
    Case(
        "unknown set",
        nothing,
        "data write imagnet",
        "no data set is called 'imagnet', only <sets>; did you mean imagenet?",
    ),
    Case(
        "no source",
        nothing,
        "data write imagenet",
        "imagenet: name the images' folder with --source FOLDER: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg",
    ),
    Case(
        "source that is nowhere",
        nothing,
        "data write folder --source nowhere --out new",
        "nowhere/train: No such file or directory. The --source folder must hold the images in "
        "train/CLASS/ and val/CLASS/.",
    ),
    Case(
        "source that is a file",
        nothing,
        "data write folder --source small.yaml --out new",
        "small.yaml/train: Not a directory. …",
    ),
    Case(
        "wrong class count",
        nothing,
        "data write imagenet --source photos --out new",
        "photos: imagenet has 1000 classes, but train/ holds 2 folders. If that is meant, write it as `folder`.",
    ),
    Case(
        "image that cannot be decoded",
        wrote("photos/val/cat/16.png", "none"),
        WRITE,
        "1 of 8 images cannot be read, so the set is not written. Repair them, or leave them out with "
        "--skip-bad. All are listed in new/val.beton.bad.txt.\n"
        "  val/cat/16.png: no JPEG, PNG, BMP, PPM, TIFF, WEBP or GIF image",
        ("new",),
    ),
    Case(
        "no image that can be decoded",
        spoilt("photos/val"),
        f"{WRITE} --skip-bad",
        "8 of 8 images …. All are listed in new/val.beton.bad.txt.\n"
        + "\n".join(f"  val/{name}.png: no JPEG, …" for name in EIGHT),
        ("new",),
    ),
    Case(
        "written already, otherwise",
        nothing,
        "data write folder --source photos --out set --quality 50",
        "set/train.beton: already written, with other settings: quality 90, max_side 400, raw_share "
        "0.0, original False, reencode False, not quality 50, max_side 400, raw_share 0.0, original False, reencode "
        "False. --force replaces it, --out writes elsewhere.",
    ),
    Case(
        "foreign file in its place",
        foreign,
        WRITE,
        "new/val.beton has no manifest (val.beton.json): …. (--force writes it again)",
    ),
    Case(
        "set into a file",
        nothing,
        "data write folder --source photos --out small.yaml",
        "small.yaml/val.beton cannot be written: File exists. The previous file is kept.",
    ),
    Case(
        "set where nothing can be",
        nothing,
        "data write folder --source photos --out /proc/new",
        "/proc/new/val.beton cannot be written: No such file or directory. The previous file is kept.",
    ),
    Case("quality out of range", nothing, f"{WRITE} --quality 0", "JPEG quality: expected 1 to 100, found 0"),
    Case(
        "share out of range",
        nothing,
        f"{WRITE} --raw-share 2",
        "share of raw images: expected 0 to 1, found 2.0",
    ),
    Case("side out of range", nothing, f"{WRITE} --max-side 0", "longest side: expected 1 to 65535 pixels, found 0"),
    Case(
        "options that contradict",
        nothing,
        f"{WRITE} --original --quality 9",
        "--original stores the source's own bytes, so --quality cannot apply; remove one of them",
    ),
    Case(
        "download of what cannot be",
        nothing,
        f"{WRITE} --download",
        "folder cannot be downloaded; give the folder that holds it with --source",
    ),
    Case(
        "CIFAR that is not there",
        nothing,
        "data write cifar10 --source photos/train --out new",
        "cifar10: neither photos/train/cifar-10-python.tar.gz nor its unpacked folder is complete (…)."
        " Put the archive there, or download it: acdc data write cifar10 --source photos/train "
        "--download",
    ),
]
