import subprocess
import sys

from timm.data import ImageNetInfo

from varlit.data.class_titles import titles


def test_synsets_are_named_by_their_first_word() -> None:
    assert titles(("n01440764", "n02099601", "n11939491")) == ("tench", "golden retriever", "daisy")


def test_synsets_outside_of_the_thousand_classes_are_named_too() -> None:
    assert "n00004475" not in ImageNetInfo().label_names()
    assert titles(("n00004475",)) == ("organism",)


def test_other_names_stay_as_they_are() -> None:
    assert titles(("cats", "n123", "n99999999", "tench, not")) == (
        *("cats", "n123", "n99999999", "tench, not"),
    )
    assert titles(()) == ()


def test_the_first_class_keeps_a_shared_name() -> None:
    assert titles(("n02012849", "n03126707")) == ("crane", "crane (n03126707)")
    assert titles(("n02012849", "crane")) == ("crane (n02012849)", "crane")


def test_all_names_of_imagenet_differ_and_none_has_a_comma() -> None:
    known = titles(ImageNetInfo("imagenet-21k-goog").label_names())
    assert len(set(known)) == len(known) == 21_843
    assert not any("," in title for title in known)
    assert len(set(titles(ImageNetInfo().label_names()))) == 1000


def test_other_names_do_not_cost_the_import_of_timm() -> None:
    code = (
        "import sys; from varlit.data.class_titles import titles; titles(['cat', 'n1']);"
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
