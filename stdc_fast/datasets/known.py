"""What is known of CamVid and Cityscapes: their label values and colours, and CamVid's usual splits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stdc_fast.classes import CAMVID, CITYSCAPES, CITYSCAPES_IDS, ClassSet
from stdc_fast.datasets.coding import Coding, Colour
from stdc_fast.reference.losses import IGNORE

#: Colours of CamVid's 32 classes, by the class of the usual 11 that SegNet puts them into.
_CAMVID_32: dict[str, dict[str, Colour]] = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Building": (128, 0, 0), "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {
        "Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192),
    },
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {
        "SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64),
    },
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128), "OtherMoving": (128, 64, 64), "SUVPickupTruck": (64, 128, 192),
        "Train": (192, 64, 128), "Truck_Bus": (192, 128, 192),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0), "Animal": (64, 128, 64), "CartLuggagePram": (64, 0, 192),
        "Child": (192, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
    "Void": {"Void": (0, 0, 0)},
}  # fmt: skip
_CAMVID_COLOURS = {
    colour: CAMVID.names.index(group) if group in CAMVID.names else IGNORE
    for group, members in _CAMVID_32.items()
    for colour in members.values()
}
_CAMVID_FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d{5,6})")

#: CamVid: ids of the usual 11 classes with 11 as void, or the release's colours.
CAMVID_CODING = Coding(
    {**{i: i for i in range(len(CAMVID))}, len(CAMVID): IGNORE, IGNORE: IGNORE},
    {**dict(zip(CAMVID.palette, range(len(CAMVID)), strict=True)), **_CAMVID_COLOURS},
)


def is_camvid(names: Iterable[str]) -> bool:
    """Whether all are names of frames of CamVid, without suffixes."""
    return all(_CAMVID_FRAME.fullmatch(name.rpartition("/")[2]) for name in names)


def camvid_split(name: str) -> str:
    """ "train", "val" or "test", as SegNet's lists of 367, 101 and 233 frames have them."""
    sequence, number = _CAMVID_FRAME.fullmatch(name.rpartition("/")[2]).groups()
    if sequence == "Seq05VD" or (sequence == "0001TP" and int(number) > 8520):
        return "test"
    is_val = sequence == "0016E5" and 7959 <= int(number) <= 8159 and int(number) % 2
    return "val" if is_val else "train"


def has_camvid_colours(colours: dict[str, Colour]) -> bool:
    """Whether these are the names and colours of CamVid's 32 classes."""
    return colours == {name: colour for group in _CAMVID_32.values() for name, colour in group.items()}


def cityscapes(train_ids: bool) -> tuple[ClassSet, Coding]:
    """Classes and coding of Cityscapes' labelTrainIds or labelIds."""
    ids = range(len(CITYSCAPES)) if train_ids else CITYSCAPES_IDS
    ignored = () if train_ids else range(34)
    values = {**dict.fromkeys((*ignored, IGNORE), IGNORE), **{v: i for i, v in enumerate(ids)}}
    return CITYSCAPES, Coding(values)
