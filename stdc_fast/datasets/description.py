"""What files beside the data say of it: data.yaml, classes.txt, and lists of names and colours."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from stdc_fast.classes import CAMVID, ClassSet
from stdc_fast.datasets import known
from stdc_fast.datasets.coding import UNKNOWN, VALUES, Coding, Colour, text
from stdc_fast.errors import UserError
from stdc_fast.reference.losses import IGNORE

#: Files with the keys below; one of them may be there.
FILES = ("data.yaml", "data.yml", "data.json")
KEYS = (
    "names", "palette", "mapping", "ignore", "coding", "images", "labels", "image_suffix", "label_suffix",
    "splits",
)  # fmt: skip
#: Names of what is no class. Its pixels do not count.
NO_CLASS = ("unlabelled", "unlabeled", "void", "ignore")


@dataclasses.dataclass(frozen=True)
class Description:
    """What ``data.yaml`` and its like say.

    Attributes:
        path: the file; None where there is none.
        fields: its keys and values, as written.
        classes, coding: of the files that name classes; None where none does.
        note: what has to be said of them, or "".
    """

    path: Path | None = None
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
    classes: ClassSet | None = None
    coding: Coding | None = None
    note: str = ""

    def word(self, key: str) -> str | None:
        """A value that is text. UserError for another one."""
        value = self.fields.get(key)
        if value is not None and not (isinstance(value, str) and value):
            raise UserError(f"{self.path}: {key} must be text, not {_short(value)}")
        return value

    def apply(self, classes: ClassSet, coding: Coding) -> tuple[ClassSet, Coding]:
        """Classes and coding with what ``mapping``, ``ignore`` and ``coding`` say.

        UserError where they contradict each other, or ``names`` and ``palette`` of the same file.
        """
        values, colours = dict(coding.values), dict(coding.colours)
        changes: dict[int | Colour, int] = {}
        mapping = self.fields.get("mapping") or {}
        if not isinstance(mapping, Mapping):
            raise UserError(f"{self.path}: mapping must have a class for each value, not {_short(mapping)}")
        lower = [n.lower() for n in classes.names]
        for written, name in mapping.items():
            key = self._key(written)
            if key in changes:
                raise UserError(f"{self.path}: {text(key)} is under mapping twice; keep one")
            if name is None or str(name).lower() in NO_CLASS:
                changes[key] = IGNORE
            elif str(name).lower() in lower:
                changes[key] = lower.index(str(name).lower())
            else:
                raise UserError(
                    f"{self.path}: mapping has {written}: {_short(name)}, which is no class; the classes are "
                    f"{', '.join(classes.names)}, and ignore"
                )
        if isinstance(self.fields.get("names"), list) and any(isinstance(k, int) for k in changes):
            values = {IGNORE: IGNORE}  # the mapping numbers the names, not their places
        written = self.fields.get("ignore")
        written = [] if written is None else written if isinstance(written, list) else [written]
        ignored = [self._key(one) for one in written]
        for key in ignored:
            if ignored.count(key) > 1:
                raise UserError(
                    f'{self.path}: ignore has {text(key)} twice; keep one, or write a colour as "0 0 0" or '
                    "[[0, 0, 0]]"
                )
            if changes.get(key, IGNORE) != IGNORE:
                raise UserError(f"{self.path}: {text(key)} is under mapping and under ignore; take one out")
            changes[key] = IGNORE
        for key, target in changes.items():
            of, where = (colours, "palette") if isinstance(key, tuple) else (values, "names")
            before = of.get(key, IGNORE)
            if "names" in self.fields and before not in (IGNORE, target):
                after = "ignored" if target == IGNORE else repr(classes.names[target])
                raise UserError(
                    f"{self.path}: {text(key)} is {classes.names[before]!r} under {where} and {after} under "
                    f"{'ignore' if key in ignored else 'mapping'}; take one out"
                )
            of[key] = target
        only = self.word("coding")
        if only not in (None, "ids", "greys", "grays", "colours", "colors"):
            raise UserError(f"{self.path}: coding must be ids, greys or colours, not {_short(only)}")
        only = only and only.replace("colors", "colours").replace("grays", "greys")
        of, remedy = values, "names by stored value"
        if only == "colours":
            of, remedy = colours, "names and palette"
        if only and all(target == IGNORE for target in of.values()):
            raise UserError(
                f"{self.path}: coding is {only}, but it is not known which class has which; write {remedy}, "
                "or mapping"
            )
        return classes, Coding(values, colours, only)

    def _key(self, written: object) -> int | Colour:
        """A stored value, or a colour as "128 64 128" or [128, 64, 128]."""
        try:
            return number(written, VALUES)
        except ValueError:
            pass
        try:
            return colour(written)
        except ValueError:
            raise UserError(
                f"{self.path}: {_short(written)} is neither a value from 0 to {VALUES - 1} nor a colour such "
                'as "128 64 128"'
            ) from None


def read(root: Path) -> Description:
    """What lies in a data set's folder. UserError for files that can not be understood."""
    present = [root / name for name in FILES if (root / name).is_file()]
    if len(present) > 1:
        raise UserError(f"{present[0]}: {present[1].name} is there, too; keep one of them")
    path = present[0] if present else None
    fields = _fields(path) if path else {}
    if "names" in fields:
        return Description(path, fields, *_named(path, fields))
    if "palette" in fields:
        raise UserError(f"{path}: palette has the colours of names; give names, too")
    for name, reader in (
        ("classes.txt", _classes_txt), ("class_dict.csv", _colour_list), ("label_colors.txt", _colour_list),
    ):  # fmt: skip
        if (root / name).is_file():
            return Description(path, fields, *reader(root / name))
    return Description(path, fields)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can not be read ({error.strerror or error})") from None


def number(written: object, end: int) -> int:
    """A whole number below ``end``, written as one or as text; ValueError."""
    if isinstance(written, str) and re.fullmatch(r"[0-9]{1,9}", written.strip()):
        written = int(written)
    if isinstance(written, bool) or not isinstance(written, int) or not 0 <= written < end:
        raise ValueError
    return written


def colour(written: object) -> Colour:
    """Red, green and blue as a list, or as text with blanks or commas between; ValueError."""
    parts = re.split(r"[\s,]+", written.strip()) if isinstance(written, str) else written
    if not isinstance(parts, list) or len(parts) != 3:
        raise ValueError
    return tuple(number(part, 256) for part in parts)


def _fields(path: Path) -> dict[str, object]:
    content = read_text(path)
    try:
        found = json.loads(content, object_pairs_hook=_unique) if path.suffix == ".json" else _yaml(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: can not be read ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must have keys and values, such as names: [road, sky]")
    unknown = [key for key in found if key not in KEYS]
    if unknown:
        raise UserError(
            f"{path}: unknown key {_short(unknown[0])}; there are {', '.join(KEYS)}; "
            "splits names lists of images, and images and labels name folders"
        )
    return found


def _unique(pairs: Iterable[tuple[object, object]]) -> dict:
    """A dict, but UserError where a key is there twice: JSON and YAML would keep the last one."""
    found: dict = {}
    for key, value in pairs:
        if not isinstance(key, (str, int)):
            raise UserError(f'{_short(key)} can not be a key; write a colour as "128 64 128"')
        if key in found:
            raise UserError(f"has {_short(key)} twice; keep one of them")
        found[key] = value
    return found


def _yaml(content: str) -> object:
    try:
        import yaml
    except ImportError:
        raise UserError(
            "reading YAML needs PyYAML: pip install pyyaml; or write the same keys into data.json"
        ) from None

    class Loader(yaml.BaseLoader):
        """All scalars stay text, so that a class may be called no, and 010 is ten."""

        def construct_mapping(self, node, deep=False):
            return _unique(
                (self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value
            )

    Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))
    try:
        return yaml.load(content, Loader)
    except yaml.YAMLError as error:
        raise UserError(f"is no valid YAML ({' '.join(str(error).split())})") from None


def _named(path: Path, fields: Mapping[str, object]) -> tuple[ClassSet, Coding]:
    """Classes and coding by ``names`` and ``palette``."""
    names, palette = fields["names"], fields.get("palette")
    try:
        pairs = list(enumerate(names)) if isinstance(names, list) else [
            (number(k, VALUES), v) for k, v in names.items()
        ]  # fmt: skip
        if not all(isinstance(name, str) and name.strip() for _, name in pairs):
            raise ValueError
    except (ValueError, AttributeError):
        raise UserError(f"{path}: names must be a list of names, or names by stored value") from None
    if palette is None:
        return _coded(path, pairs, None)
    try:
        if isinstance(palette, list):
            palette = dict(zip((name for _, name in pairs), palette, strict=True))
        colours = {str(name): colour(written) for name, written in palette.items()}
        if set(colours) != {name for _, name in pairs}:
            raise ValueError
    except (ValueError, AttributeError):
        raise UserError(
            f"{path}: palette must have a colour such as [128, 64, 128] for each of the {len(pairs)} names"
        ) from None
    return _coded(path, pairs, colours)


def _coded(
    path: Path, pairs: list[tuple[int | None, str]], colours: Mapping[str, Colour] | None
) -> tuple[ClassSet, Coding]:
    """Classes and coding of names by stored value, None for none, and of their colours, if any."""
    pairs = [(value, name.strip()) for value, name in pairs]
    names = [name for _, name in pairs if name.lower() not in NO_CLASS]
    if not 0 < len(names) <= UNKNOWN:
        raise UserError(f"{path}: names {len(names) or 'no'} classes; there can be 1 to {UNKNOWN}")
    for what, given in (("names", names), ("has the value", [v for v, _ in pairs if v is not None]),
                        ("has the colour", [*(colours or {}).values()])):  # fmt: skip
        repeated = next((g for g in given if given.count(g) > 1), None)
        if repeated is not None:
            shown = repr(repeated) if what == "names" else text(repeated)
            raise UserError(f"{path}: {what} {shown} twice; each class needs one of its own")
    lower = [name.lower() for name in names]
    for i, name in enumerate(lower):
        if name in lower[:i]:
            raise UserError(
                f"{path}: names {names[lower.index(name)]!r} and {names[i]!r}, which differ only in case; "
                "each class needs one of its own"
            )
    target = {name: names.index(name) if name in names else IGNORE for _, name in pairs}
    values = {IGNORE: IGNORE} | {value: target[name] for value, name in pairs if value is not None}
    if all(value is None for value, _ in pairs):
        values = {}
    if colours is None:
        return ClassSet.from_names(tuple(names)), Coding(values)
    colours = {name.strip(): c for name, c in colours.items()}
    classes = ClassSet(tuple(names), tuple(colours[name] for name in names))
    return classes, Coding(values, {c: target[name] for name, c in colours.items()})


def _classes_txt(path: Path) -> tuple[ClassSet, Coding]:
    """Lines of "3 Road", also with : or = or one comma between, or of plain names in order of their ids."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    between = r"(?:\s*[:=]\s*|\s*,\s*(?!.*,)|\s+)"
    numbered = [re.fullmatch(rf"(\d{{1,9}}){between}([^\s:=,].*)", line) for line in lines]
    if not any(numbered):
        strange = next((line for line in lines if re.search(r"\s\d+$|[,;\t\0]|^\d+\s*[:=]", line)), None)
        if strange is None:
            return _coded(path, list(enumerate(lines)), None)
        numbered, lines = [None], [strange]
    for line, match in zip(lines, numbered, strict=True):
        if not match or int(match[1]) >= VALUES:
            raise UserError(f"{path}: expected lines of the form '3 Road', or names alone, got {line!r}")
    return _coded(path, [(int(match[1]), match[2]) for match in numbered], None)


def _colour_list(path: Path) -> tuple[ClassSet, Coding, str]:
    """Lines of "name,r,g,b" below such a heading, or of "r g b name"; and a note about CamVid."""
    colours: dict[str, Colour] = {}
    for line in read_text(path).splitlines():
        parts = [part.strip() for part in line.split(",")]
        if not line.strip() or sorted(part.lower() for part in parts) == ["b", "g", "name", "r"]:
            continue
        if path.suffix == ".csv":
            name, code = parts[0], parts[1:]
        else:
            *code, name = line.split(None, 3)
        try:
            if not name or name in colours:
                raise ValueError
            colours[name.strip()] = colour(code)
        except ValueError:
            form = "name,r,g,b" if path.suffix == ".csv" else "128 64 128 Road"
            raise UserError(f"{path}: expected lines of the form {form!r}, got {line.strip()!r}") from None
    if known.has_camvid_colours(colours):
        note = f"{path}: CamVid's 32 colours are taken as its usual 11 classes; for others write data.yaml"
        return CAMVID, known.CAMVID_CODING, note
    return *_coded(path, [(None, name) for name in colours], colours), ""


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else f"{shown[:60]}..."
