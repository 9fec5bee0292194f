"""data.yaml, data.json, classes.txt and lists of colours: what they say, and what is refused in one line."""

import json

import pytest

from stdc_fast.classes import CAMVID, ClassSet
from stdc_fast.datasets import description
from stdc_fast.errors import UserError


def read(root, fields=None, **files):
    if fields is not None:
        (root / "data.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))
    for name, content in files.items():
        (root / name.replace("_", ".", 1)).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    about = description.read(root)
    return about.apply(about.classes, about.coding)


def test_names_number_the_values(tmp_path):
    classes, coding = read(tmp_path, {"names": ["road", "void", "no"]})
    assert classes.names == ("road", "no")
    assert coding.values == {0: 0, 1: 255, 2: 1, 255: 255} and not coding.colours
    classes, coding = read(tmp_path, {"names": {"7": "road", "255": "sky"}})
    assert coding.values == {7: 0, 255: 1}


def test_palette_and_mapping(tmp_path):
    fields = {
        "names": ["road", "car", "void"],
        "palette": [[128, 64, 128], "64 0 128", [0, 0, 0]],
        "mapping": {"38": "road", "75": "car", "0, 0, 142": "Car", "119": None},
        "ignore": [0, "1 2 3"],
        "coding": "colors",
    }
    classes, coding = read(tmp_path, fields)
    assert classes == ClassSet(("road", "car"), ((128, 64, 128), (64, 0, 128)))
    assert coding.values == {255: 255, 38: 0, 75: 1, 119: 255, 0: 255}
    assert coding.colours == {
        (128, 64, 128): 0, (64, 0, 128): 1, (0, 0, 0): 255, (0, 0, 142): 1, (1, 2, 3): 255,
    }  # fmt: skip
    assert coding.only == "colours"
    by_name = dict(zip(fields["names"], fields["palette"], strict=True))
    assert read(tmp_path, fields | {"palette": by_name}) == (classes, coding)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("{", "can not be read"),
        ("[1]", "must have keys and values"),
        ('{"names": ["a"], "names": ["b"]}', "has 'names' twice"),
        ({"nc": 2}, "unknown key 'nc'; there are names, palette"),
        ({"train": "images/train"}, "splits names lists of images, and images and labels name folders"),
        ({"names": "road"}, "names must be a list of names"),
        ({"names": ["road", 3]}, "names must be a list of names"),
        ({"names": {"-1": "road"}}, "names must be a list of names"),
        ({"names": []}, "names no classes"),
        ({"names": ["void"]}, "names no classes"),
        ({"names": ["a", "b", "a"]}, "names 'a' twice"),
        ({"names": ["Road", "sky", "road"]}, "names 'Road' and 'road', which differ only in case"),
        ({"names": {"1": "a", "01": "b"}}, "has the value 1 twice"),
        ({"names": [f"c{i}" for i in range(255)]}, "names 255 classes"),
        ({"palette": [[0, 0, 0]]}, "palette has the colours of names"),
        ({"names": ["a", "b"], "palette": [[0, 0, 0]]}, "for each of the 2 names"),
        ({"names": ["a", "b"], "palette": [[0, 0, 0], [0, 0, 256]]}, "for each of the 2 names"),
        ({"names": ["a", "b"], "palette": [[0, 0, 1], [0, 0, 1]]}, "has the colour 0 0 1 twice"),
        ({"names": ["a"], "mapping": {"3": "b"}}, "3: 'b', which is no class; the classes are a, and ignore"),
        ({"names": ["a"], "mapping": ["b"]}, "mapping must have a class for each value"),
        ({"names": ["a"], "mapping": {"red": "a"}}, "'red' is neither a value"),
        ({"names": ["a"], "ignore": 65536}, "65536 is neither a value"),
        ({"names": ["a"], "mapping": {"3": "a"}, "ignore": 3}, "3 is under mapping and under ignore"),
        ({"names": {"0": "a", "3": "b"}, "ignore": 3}, "3 is 'b' under names and ignored under ignore"),
        ({"names": ["a", "b"], "ignore": [1]}, "1 is 'b' under names and ignored under ignore"),
        ({"names": {"0": "a", "3": "b"}, "mapping": {"3": None}},
         "3 is 'b' under names and ignored under mapping"),
        ({"names": {"0": "a", "3": "b"}, "mapping": {"0": "b"}},
         "0 is 'a' under names and 'b' under mapping"),
        ({"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "mapping": {"0 0 0": "b"}},
         "0 0 0 is 'a' under palette and 'b' under mapping; take one out"),
        ({"names": ["a"], "palette": [[0, 0, 0]], "ignore": "0 0 0"},
         "0 0 0 is 'a' under palette and ignored"),
        ({"names": ["a", "b"], "mapping": {"3": "a", "03": "b"}}, "3 is under mapping twice"),
        ({"names": ["a"], "mapping": {"7": "a"}, "ignore": [0, 0, 0]},
         'ignore has 0 twice; keep one, or write a colour as "0 0 0" or [[0, 0, 0]]'),
        ({"names": ["a"], "coding": "colours"}, "coding is colours, but it is not known which class has"),
        ({"names": ["a"], "ignore": "0 0 0", "coding": "colors"}, "write names and palette, or mapping"),
        ({"names": ["a"], "mapping": {"9": None}, "coding": "grays"}, "coding is greys, but it is not known"),
        ({"names": ["a"], "coding": "rgb"}, "coding must be ids, greys or colours, not 'rgb'"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, fields, said):
    with pytest.raises(UserError, match=r"data\.json: ") as refusal:
        read(tmp_path, fields)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_coding_ids_where_colours_alone_are_known(tmp_path):
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,128,64,128\n")
    with pytest.raises(UserError, match=r"coding is ids, but .* write names by stored value, or mapping"):
        read(tmp_path, {"coding": "ids"})
    assert read(tmp_path, {"coding": "ids", "mapping": {"3": "road"}})[1].values == {3: 0}


def test_what_is_no_contradiction(tmp_path):
    """The same again, what is no class, and what other files say."""
    fields = {
        "names": {"0": "sky", "1": "void"},
        "mapping": {"0": "Sky", "1": "sky"},
        "ignore": ["9", [0, 0, 0]],
    }
    assert read(tmp_path, fields)[1].values == {255: 255, 0: 0, 1: 0, 9: 255}
    coding = read(tmp_path, {"mapping": {"0": "road"}, "ignore": 1}, classes_txt="sky\nroad\nwall")[1]
    assert coding.values == {255: 255, 0: 1, 1: 255, 2: 2}


def test_yaml(tmp_path):
    """Scalars are text: no class called no becomes false, and no number octal."""
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = """
names: [no, on, 010]     # three names
palette:
  no: [128, 64, 128]
  on: 64 0 128
  010: 0 0 010
mapping: {0 0 142: on, 7: no}
ignore: 11
"""
    classes, coding = read(tmp_path, data_yaml=text)
    assert classes == ClassSet(("no", "on", "010"), ((128, 64, 128), (64, 0, 128), (0, 0, 10)))
    assert coding.values == {255: 255, 7: 0, 11: 255}
    assert coding.colours[0, 0, 142] == 1
    for bad, said in (
        ("names: [a", "is no valid YAML"),
        ("a: 1\na: 2", "has 'a' twice"),
        ("- a", "must have keys and values"),
        ("names: !!python/object/apply:os.getcwd []", "names no classes"),
        ("names: [a]\nmapping: {[0, 0, 1]: a}", "can not be a key"),
        ("names: [a]\n\0", "is no valid YAML"),
        ("[" * 5000, "data.yaml: "),
    ):
        with pytest.raises(UserError, match=said) as refusal:
            read(tmp_path, data_yaml=bad)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"data\.json is there, too"):
        read(tmp_path, {"names": ["a"]})


def test_yaml_without_pyyaml(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(UserError, match=r"data\.yaml: reading YAML needs PyYAML: pip install pyyaml; or"):
        read(tmp_path, data_yaml="names: [a]")


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
def test_classes_txt(tmp_path, head):
    classes, coding = read(tmp_path, classes_txt=head + b"0 Sky\r\n\r\n 7  Road way \r\n11 Unlabelled\r\n")
    assert classes.names == ("Sky", "Road way")
    assert coding.values == {0: 0, 7: 1, 11: 255, 255: 255}
    classes, coding = read(tmp_path, classes_txt=head + "Himmel\nStraße\nvoid\nAuto\n".encode())
    assert classes.names == ("Himmel", "Straße", "Auto")
    assert coding.values == {0: 0, 1: 1, 2: 255, 3: 2, 255: 255}
    for between in (": ", ":", ", ", " , ", " = ", "=", "\t"):
        text = f"# ids\n0{between}Sky\n#1{between}no\n7{between}Road way\n"
        classes, coding = read(tmp_path, classes_txt=head + text.encode())
        assert classes.names == ("Sky", "Road way") and coding.values == {255: 255, 0: 0, 7: 1}, between
    assert read(tmp_path, classes_txt=head + b"# all\na: b\nc = d\n")[0].names == ("a: b", "c = d")
    names = "\n".join(CAMVID.names).encode()
    assert read(tmp_path, classes_txt=head + names)[0] is CAMVID


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Sky 0\nRoad 1\n", "of the form '3 Road', or names alone, got 'Sky 0'"),
        ("0 Sky\nRoad\n", "got 'Road'"),
        ("Sky,0\n", "got 'Sky,0'"),
        ("0: Sky\nRoad\n", "got 'Road'"),
        ("0,Sky,1,2,3\n", "got '0,Sky,1,2,3'"),
        ("0:\n1:\n", "got '0:'"),
        ("Sky\nsky\n", "names 'Sky' and 'sky', which differ only in case"),
        ("70000 Sky\n", "got '70000 Sky'"),
        ("", "names no classes"),
        ("0 Void\n", "names no classes"),
        ("0 Sky\n0 Road\n", "has the value 0 twice"),
        ("Straße\n".encode("latin-1"), "is no UTF-8 text; save it as UTF-8"),
        ("Sky\nRoad\n".encode("utf-16"), "is no UTF-8 text; save it as UTF-8"),
        ("Sky\nRoad\n".encode("utf-16-le"), "of the form"),
    ],
)
def test_other_classes_txt(tmp_path, content, said):
    with pytest.raises(UserError, match=r"classes\.txt: ") as refusal:
        read(tmp_path, classes_txt=content)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_lists_of_colours(tmp_path):
    (tmp_path / "class_dict.csv").write_text("name, r, g, b\nroad,128,64,128\nvoid,0,0,0\n")
    classes, coding = read(tmp_path)
    assert classes == ClassSet(("road",), ((128, 64, 128),))
    assert coding.colours == {(128, 64, 128): 0, (0, 0, 0): 255} and not coding.values
    (tmp_path / "class_dict.csv").write_text("road,128,64\n")
    with pytest.raises(UserError, match="of the form 'name,r,g,b', got 'road,128,64'"):
        read(tmp_path)
    (tmp_path / "class_dict.csv").unlink()
    (tmp_path / "label_colors.txt").write_text("128 64 128\t\tmy road\n0 0 0\tVoid\n")
    assert read(tmp_path) == (ClassSet(("my road",), ((128, 64, 128),)), coding)
