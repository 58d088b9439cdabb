import os
from pathlib import Path

import numpy as np
import pytest

from varlit.data.formats.folders import ClassFolders, hold_out, list_class_folders
from varlit.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def listed(tree: ClassFolders) -> list[str]:
    return [os.fsdecode(name) for name in tree.names.tolist()]


def test_classes_and_files_are_sorted_and_other_files_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/1.JPG", "a/x.webp", "a/.hidden.png", "a/notes.txt", ".c/1.png")
    touch(tmp_path, "b/deep/3.png", "b/.git/4.png", "loose.png")
    tree = list_class_folders(tmp_path)
    assert tree.class_names == ("a", "b")
    assert listed(tree) == ["a/x.webp", "b/1.JPG", "b/2.png", "b/deep/3.png"]
    assert tree.labels.tolist() == [0, 1, 1, 1]
    assert tree.path(3) == tmp_path / "b" / "deep" / "3.png"


def test_a_validation_set_takes_its_labels_from_the_training_set(tmp_path: Path) -> None:
    touch(tmp_path, "c/1.png")
    assert list_class_folders(tmp_path, ("a", "b", "c")).labels.tolist() == [2]
    with pytest.raises(UserError, match="the training set lacks, such as 'c'"):
        list_class_folders(tmp_path, ("a", "b"))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist: expected <folder>/<class>/<image>"):
        list_class_folders(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty: expected <folder>/<class>/<image>"):
        list_class_folders(tmp_path)


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(UserError, match=r"2 images but no class sub-folders.*move them to '.*all'"):
        list_class_folders(tmp_path)


def test_class_folders_without_images_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/readme.txt")
    with pytest.raises(UserError, match=r"no image in the 1 class folders.*\.jpeg"):
        list_class_folders(tmp_path)


def test_one_empty_class_is_warned_of(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    with pytest.warns(UserWarning, match="1 class folder.*such as 'b'"):
        assert list_class_folders(tmp_path).class_names == ("a", "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    tmp_path.chmod(0)
    try:
        with pytest.raises(UserError, match="no permission to read"):
            list_class_folders(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_an_unlistable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError, match="no permission to read"):
        list_class_folders(tmp_path)


def test_what_is_held_out_depends_on_the_names_alone(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(50)))
    tree = list_class_folders(tmp_path)
    train, val = hold_out(tree, 0.1)
    assert len(val) == 10
    assert sorted(listed(train) + listed(val)) == listed(tree)
    shuffled = tree.take(np.random.default_rng(0).permutation(100))
    assert sorted(listed(hold_out(shuffled, 0.1)[1])) == listed(val)


def test_at_least_one_image_is_held_out_and_one_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png")
    tree = list_class_folders(tmp_path)
    for fraction in (0.001, 0.999):
        train, val = hold_out(tree, fraction)
        assert (len(train), len(val)) == (1, 1)
    with pytest.raises(UserError, match="one image, which leaves none to validate on"):
        hold_out(train, 0.5)


def test_the_digest_changes_with_the_files(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    before = list_class_folders(tmp_path).digest()
    assert before == list_class_folders(tmp_path).digest()
    touch(tmp_path, "a/2.png")
    assert list_class_folders(tmp_path).digest() != before
