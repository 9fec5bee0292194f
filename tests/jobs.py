"""Sources made up for jobs, and what a job left."""

import io
import tarfile

from PIL import Image


def jpeg(photo, seed, height=64, width=96):
    file = io.BytesIO()
    Image.fromarray(photo(height, width, seed)).save(file, "JPEG", quality=90)
    return file.getvalue()


def folder_of(photo, path, count, per_folder=4):
    """JPEGs in sub-folders, all different."""
    for i in range(count):
        file = path / f"cam{i // per_folder}" / f"{i:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(photo, i))
    return path


def tar_of(photo, path, names, more=()):
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            for member, content in ((name, jpeg(photo, i)), *((f"{name[:-4]}{s}", c) for s, c in more)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def tree(path):
    """All files of a job by name, without the lock."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lock")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def results(path):
    """Names of label PNGs of a tree, without suffix."""
    return sorted(p.relative_to(path / "labels").as_posix()[:-4] for p in (path / "labels").rglob("*.png"))
