import os
from pathlib import Path

import numpy as np
import pytest

from varlit.data.formats import folder_index
from varlit.data.formats.encoded import digest, hold_out_rows
from varlit.data.formats.folders import ClassFolders, list_class_folders, open_folders
from varlit.data.formats.splits import open_splits
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
    assert tree.read(3) == tmp_path / "b" / "deep" / "3.png"
    assert tree.where(3) == str(tmp_path / "b" / "deep" / "3.png")


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


def test_a_folder_of_other_files_is_not_called_empty(tmp_path: Path) -> None:
    touch(tmp_path, "train.tar", ".hidden")
    with pytest.raises(UserError, match=r"has 1 file\(s\) but no class sub-folders: expected"):
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
    train, val = (tree.take(rows) for rows in hold_out_rows(tree.names, 0.1))
    assert len(val) == 10
    assert sorted(listed(train) + listed(val)) == listed(tree)
    shuffled = tree.take(np.random.default_rng(0).permutation(100))
    held_out = shuffled.take(hold_out_rows(shuffled.names, 0.1)[1])
    assert sorted(listed(held_out)) == listed(val)


def test_at_least_one_image_is_held_out_and_one_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png")
    for fraction in (0.001, 0.999):
        splits = open_splits(str(tmp_path), "", fraction)
        assert [len(images) for images in splits.values()] == [1, 1]
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UserError, match="one image, which leaves none to validate on"):
        open_splits(str(tmp_path), "", 0.5)


def test_the_digest_changes_with_the_files(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    before = digest(list_class_folders(tmp_path))
    assert before == digest(list_class_folders(tmp_path))
    touch(tmp_path, "a/2.png")
    assert digest(list_class_folders(tmp_path)) != before


def test_links_and_folders_that_are_named_like_images(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.png", "deep/2.png")
    touch(tmp_path / "images", "a/dir.png/3.png")
    links = {"b": "elsewhere", "a/in": "elsewhere", "a/4.png": "elsewhere/1.png", "a/5.png": "gone"}
    for link, target in links.items():
        (tmp_path / "images" / link).symlink_to(tmp_path / target)
    tree = list_class_folders(tmp_path / "images")
    # Class folders may be links; within them only links to images are followed.
    assert listed(tree) == ["a/4.png", "a/5.png", "a/dir.png/3.png", "b/1.png", "b/deep/2.png"]


def test_names_are_bytes_of_any_kind(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"a/\xff.png", "b/\u00e9 x.png".encode())]
    touch(tmp_path, *names)
    tree = list_class_folders(tmp_path)
    assert listed(tree) == names
    assert all(tree.read(row).is_file() for row in range(2))


def test_a_tree_that_is_recalled_is_the_tree_that_was_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "FEWEST_NAMES", 1)
    monkeypatch.setattr(folder_index, "COARSEST_CLOCK_NS", 0)
    root = tmp_path / "images"
    touch(root, "train/b/1.png", "train/a/x/2.png", "train/a/3.png", "val/b/4.png")
    (root / "train" / "c").mkdir()
    for _ in range(2):
        with pytest.warns(UserWarning, match="without an image, such as 'c'"):
            splits = open_folders(str(root))
        assert [listed(tree) for tree in splits.values()] == [  # type: ignore[arg-type]
            ["a/3.png", "a/x/2.png", "b/1.png"],
            ["b/4.png"],
        ]
        assert splits["train"].labels.tolist() == [0, 0, 1]
        assert splits["val"].labels.tolist() == [1]
        assert splits["train"].names.dtype.kind == "S"
        assert len(list((tmp_path / "cache" / "folders").iterdir())) == 2
