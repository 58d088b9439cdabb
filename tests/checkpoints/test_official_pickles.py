"""What a file is, told before and while it is read; code in it never runs."""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from varlit.checkpoints.official_pickles import read_pickle, write_pickle
from varlit.errors import UserError


class Malicious:
    """Leaves a file where it was unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def save_zip(content, path):
    torch.save(content, path)


def save_old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_plain(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "var_d16.pth"


@pytest.mark.parametrize("save", [save_zip, save_old])
def test_what_torch_wrote_is_read(save, path):
    save({"a": torch.arange(3.0)}, path)
    content = read_pickle(path)
    assert torch.equal(content["a"], torch.arange(3.0))


def test_what_is_written_is_read_again_and_leaves_nothing_beside_it(path):
    write_pickle({"a": torch.arange(3.0)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3.0))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("save", [save_zip, save_old, save_plain])
def test_code_is_refused_by_name_and_does_not_run(save, path, tmp_path):
    trace = tmp_path / "trace"
    save({"a": Malicious(trace)}, path)
    with pytest.raises(UserError, match=r"`posix\.mkdir`.*nothing of it was run"):
        read_pickle(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists(), "the test's own weapon is blunt"


@pytest.mark.parametrize("save", [save_zip, save_old])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_called_so(save, share, path):
    save({str(i): torch.rand(500) for i in range(8)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"truncated|damaged"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"some words", "damaged"),
        (b"import os, torch\nfrom varlit import load\n", "damaged"),  # `i` begins a name
        (pickle.dumps([1, 2], protocol=4), "damaged, or no checkpoint"),
    ],
    ids=["empty", "page", "pointer", "text", "python", "pickle"],
)
def test_other_files_are_told_apart(content, message, path):
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_pickle(path)


def test_other_formats_are_told_apart(path):
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="safetensors"):
        read_pickle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(UserError, match="is an archive"):
        read_pickle(path)


def test_a_folder_and_a_missing_file_are_told_apart(path):
    with pytest.raises(UserError, match="there is no file"):
        read_pickle(path)
    with pytest.raises(UserError, match="--to official"):
        read_pickle(path.parent)


def test_a_place_that_cannot_be_written_is_named(path):
    path.touch()
    with pytest.raises(UserError, match=r"cannot write .*inside\.pth.*give another --out"):
        write_pickle({"a": torch.zeros(2)}, path / "inside.pth")
