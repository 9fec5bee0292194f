"""What a file is that is no checkpoint, by its first bytes, and what to do about it."""

from __future__ import annotations

#: How much of a file's start is looked at.
HEAD = 512

_PICTURE = "is a picture; give the checkpoint, and the picture to predict()"
_PACKED = "is compressed ({}); unpack it and give the checkpoint inside"
_PAGE = "is a web page, not the file: the download needs a login or another address; download it in a browser"

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file; run 'git lfs pull' in its repository"),
    (b"\x1f\x8b", _PACKED.format("gzip")),
    (b"BZh", _PACKED.format("bzip2")),
    (b"\xfd7zXZ", _PACKED.format("xz")),
    (b"\x28\xb5\x2f\xfd", _PACKED.format("Zstandard")),
    (b"7z\xbc\xaf\x27\x1c", _PACKED.format("7-Zip")),
    (b"Rar!", _PACKED.format("RAR")),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes; weights of Keras are not read"),
    (b"\x93NUMPY", "is a NumPy array; give what torch.save() wrote of a state dict"),
    (b"\x89PNG", _PICTURE),
    (b"\xff\xd8\xff", _PICTURE),
    (b"%PDF", "is a PDF document; give a checkpoint"),
    (b"ftrt", "is a TensorRT engine, which is compiled; give the checkpoint that it was made from"),
)


def what_else(head: bytes) -> str:
    """What a file that begins so is, as the end of a sentence about it. ``head`` has up to HEAD bytes."""
    for start, what in _STARTS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it and give the checkpoint inside"
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model, which is compiled; give the checkpoint that it was made from"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        lowered = text[:200].lower()
        if b"<net" in lowered:
            return "is an OpenVINO model; give the checkpoint that it was made from"
        return _PAGE if b"html" in lowered else "is an XML document; give a checkpoint"
    if text[:1] in b"{[" and text:
        return "is a JSON text; give the checkpoint itself"
    # ONNX: the version of the format, then the producer's name or the version of the operators.
    if len(head) > 4 and head[0] == 8 and head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42):
        return "is an ONNX model; give the checkpoint that it was made from"
    if head and all(32 <= b < 127 or b in b"\t\r\n" for b in head):
        return "is a text file; give a checkpoint"
    return "is neither a torch, a PaddlePaddle nor a safetensors file"
