"""Config files of strangers: YAML that makes objects, classes that run code, commands, secrets."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from varlit.cli import main as command_line
from varlit.cli.config.recipes import read_yaml
from varlit.cli.config.trust import require_trusted, require_typed, split_imports
from varlit.errors import UserError


@pytest.fixture
def stranger(tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that can be imported, and writes a file when it is."""
    name = "stranger_of_" + tmp_path.name.replace("-", "_")
    package = tmp_path / "packages" / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "data.py").write_text(
        f"from pathlib import Path\nPath({str(trap)!r}).touch()\n"
        "from varlit.data.digits import DigitsDataModule\n"
        "class Mine(DigitsDataModule): pass\n"
        "def hook(*args): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.chdir(tmp_path)
    return name


def fit(content: Any, *words: str) -> int:
    """A dry run of the recipe `digits` with a config of somebody's on top."""
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    Path("theirs.yaml").write_text(text)
    files = ["-c", "digits", "-c", "theirs.yaml"]
    return command_line.main(["tokenizer", "fit", *files, "--dry_run", *words])


def callback(hook: Any) -> dict[str, Any]:
    name = "lightning.pytorch.callbacks.LambdaCallback"
    return {"trainer": {"callbacks": [{"class_path": name, "init_args": {"on_fit_start": hook}}]}}


@pytest.mark.slow
def test_a_class_of_elsewhere_is_not_imported(
    stranger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit({"data": {"class_path": f"{stranger}.data.Mine"}}) == 2
    told = capsys.readouterr().err
    assert f"{stranger}.data.Mine is not among the classes that a config may name" in told
    assert f"--allow-import {stranger}.data" in told
    assert len(told.splitlines()) == 1
    assert f"{stranger}.data" not in sys.modules


@pytest.mark.slow
def test_it_is_not_imported_from_a_flag_either(stranger: str) -> None:
    for words in (
        ["--data", f"{stranger}.data.Mine"],
        [f"--data.class_path={stranger}.data.Mine"],
        ["--trainer.callbacks+=" + f"{stranger}.data.Mine"],
        [f"--data.help={stranger}.data.Mine"],
    ):
        assert fit({}, *words) == 2
    assert f"{stranger}.data" not in sys.modules


@pytest.mark.parametrize("place", ["a callback", "a logger", "a plugin", "inside", "a function"])
def test_it_is_not_imported_from_any_place_that_takes_a_class(stranger: str, place: str) -> None:
    path = f"{stranger}.data.Mine"
    spec = {"class_path": path, "init_args": {}}
    content = {
        "a callback": {"trainer": {"callbacks": [spec]}},
        "a logger": {"trainer": {"logger": spec}},
        "a plugin": {"trainer": {"plugins": [spec]}},
        "inside": callback(spec),
        "a function": callback(f"{stranger}.data.hook"),
    }[place]
    assert fit(content) == 2
    assert f"{stranger}.data" not in sys.modules


@pytest.mark.parametrize(
    "path",
    [
        *("os.system", "builtins.eval", "subprocess.Popen", "functools.partial"),
        *("torch.os.system", "torch.hub.load", "torch.load", "torch.jit.load"),
        *("torch.utils.cpp_extension.load_inline", "torch.utils.benchmark.Timer"),
        *("lightning.pytorch.cli.LightningCLI", "varlit.cli.main.main"),
        *("varlit.cli.main.importlib.import_module", "jsonargparse.set_parsing_settings"),
        *("torch.utils.collect_env.run", "torch.utils.data.datapipes.utils.decoder.basichandlers"),
        *("torchvision.datasets.utils.extract_archive", "torch.backends.xeon.run_cpu.main"),
        *("torch.distributed.launch.main", "torch.cuda._memory_viz.format_flamegraph"),
        *("torch.distributed.distributed_c10d._tensor_to_object", "torch.onnx.export"),
        *("lightning.fabric.utilities.cloud_io._load", "torch.utils.hipify.hipify_python.hipify"),
        *("varlit.data.formats.tar_stream.read_text", "varlit.arrays.read_array"),
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint.load_state_dict",
    ],
)
def test_functions_that_run_code_are_not_taken_where_a_function_may_stand(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(callback(path)) == 2
    told = capsys.readouterr().err
    assert "is not among the classes that a config may name" in told or "would be run" in told


CHAIN = {
    "class_path": "torch.utils.data.datapipes.map.Mapper",
    "init_args": {
        "datapipe": {
            "class_path": "torch.utils.data.datapipes.map.SequenceWrapper",
            "init_args": {"sequence": ["touch {trap}"]},
        },
        "fn": "torch.utils.collect_env.run",
    },
}
LISTING = {
    "class_path": "torchvision.datasets.DatasetFolder",
    "init_args": {"root": "evil", "loader": "torch.utils.collect_env.run", "extensions": [".png"]},
}


@pytest.mark.parametrize("dataset", [CHAIN, LISTING], ids=["chain", "listing"])
def test_data_sets_that_run_what_they_read_are_not_built(
    dataset: dict[str, Any], trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil" / "class").mkdir(parents=True)
    (tmp_path / "evil" / "class" / f"x;touch {trap.name};.png").touch()
    data = json.loads(json.dumps(dataset).replace("{trap}", str(trap)))
    given = {"train_dataset": data, "val_dataset": data, "batch_size": 1}
    module = "lightning.pytorch.LightningDataModule.from_datasets"
    content = {"data": {"class_path": module, "init_args": given}}
    Path("theirs.yaml").write_text(yaml.safe_dump(content))
    words = ["tokenizer", "fit", "-c", "digits", "-c", "theirs.yaml", "--name", "x", "--gpus", "0"]
    assert command_line.main(words) == 2, "and it is no dry run"
    assert not trap.exists()


def test_a_class_method_is_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "varlit.training.tokenizer.TokenizerModule.load_from_checkpoint"
    with pytest.raises(UserError, match="expected a class"):
        require_trusted({"model": {"class_path": path}}, [])
    require_trusted({"data": {"class_path": "varlit.data.images.ImageDataModule"}}, [])


def test_known_classes_and_functions_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(callback("torch.nn.functional.relu")) == 0
    for path in ("lightning.pytorch.callbacks.Timer", "varlit.callbacks.best.KeepBest"):
        assert fit({"trainer": {"callbacks": [{"class_path": path}]}}) == 0


@pytest.mark.slow
def test_who_is_trusted_is_imported_for_one_command(
    stranger: str, trap: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"data": {"class_path": f"{stranger}.data.Mine"}}
    assert fit(theirs, "--allow-import", stranger) == 0
    assert trap.exists()
    trap.unlink()
    capsys.readouterr()
    assert fit(theirs) == 2, "the word counts for the command that it was typed for"
    assert fit(theirs, f"--allow-import={stranger}.other") == 2
    hook = callback(f"{stranger}.data.hook")
    assert fit(hook, "--allow-import", stranger) == 0
    assert fit(hook) == 2
    assert fit(theirs | {"allow_import": [stranger]}) == 2, "a file does not vouch for itself"
    assert fit(f"allow-import: {stranger}\n") == 2


def test_allow_import_wants_a_package() -> None:
    words = ["--a", "b", "--allow-import", "x.y", "--allow-import=z", "--allow_import", "w"]
    assert split_imports(words) == (["--a", "b"], ["x.y", "z", "w"])
    for wrong in (["--allow-import"], ["--allow-import", "*"], ["--allow-import="]):
        with pytest.raises(UserError, match="wants a package"):
            split_imports(wrong)


def test_a_class_where_anything_may_stand_is_not_built(stranger: str) -> None:
    """`dict_kwargs` take any value, so no type would hold a class back."""
    from jsonargparse import ArgumentParser

    from varlit.cli.config.trust import restrict_parsing

    restrict_parsing([])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=Any)  # type: ignore[arg-type]
    for path in (f"{stranger}.data.Mine", "torch.nn.Identity"):
        spec = {"class_path": path, "init_args": {}}
        found = parser.instantiate(parser.parse_object({"value": spec}))
        assert type(found.value).__name__ in {"dict", "Namespace"}
    assert f"{stranger}.data" not in sys.modules


@pytest.mark.slow
def test_configs_behind_addresses_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    monkeypatch.chdir(tmp_path)
    place = "memory://theirs/data.yaml"
    with fsspec.open(place, "w") as file:
        file.write("class_path: DigitsDataModule\ninit_args: {batch_size: 3}\n")
    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, args=(0.02,)).start()
    try:
        for address in (f"http://127.0.0.1:{server.server_port}/data.yaml", place):
            assert fit({}, "--data", address) == 2
            assert fit({"data": address}) == 2
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


TAGS = (
    "!!python/object/apply:pathlib.Path.touch [{path: x}]",
    "!!python/object/apply:os.system ['touch {trap}']",
    "!!python/object/new:os.system ['touch {trap}']",
    "!!python/name:os.system",
    "!!python/module:os",
)


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_objects(
    tag: str, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "data: " + tag.replace("{trap}", str(trap))
    assert fit(text) == 2
    with pytest.raises(UserError, match=r"theirs\.yaml, line 1"):
        read_yaml(Path("theirs.yaml"))
    assert fit("{}", "--data", tag.replace("{trap}", str(trap))) == 2
    with pytest.raises(UserError, match=r"constructor|YAML|tag"):
        raise_yaml(tag)


def raise_yaml(tag: str) -> None:
    """`varlit info` reads flags as YAML as well."""
    from varlit.cli.pricing.info import parse_overrides

    try:
        parse_overrides(["--a.b", tag])
    except yaml.YAMLError as error:
        raise UserError(f"YAML: {error}") from error


def test_a_document_that_unfolds_to_billions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    monkeypatch.chdir(tmp_path)
    assert fit("\n".join(lines)) == 2
    assert "unfolds to over 100,000 values" in capsys.readouterr().err
    for text in ("a: &a [*a]", "[" * 50_000):
        assert fit(text) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_variables_of_the_environment_are_not_told_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "hunter2")
    root = "https://listener.invalid/${oc.env:SECRET}"
    for value in (root, "${oc.${project}:SECRET}", "${oc.env:NOT_THERE,${oc.env:SECRET}}"):
        content = {"data": {"class_path": "ImageDataModule", "init_args": {"root": value}}}
        assert fit(content) == 2
        told = capsys.readouterr()
        assert "hunter2" not in told.out + told.err
        assert len(told.err.splitlines()) == 1
    assert fit({}, "--data.root", root) == 2


@pytest.mark.slow
def test_a_command_in_a_file_is_not_run(
    tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"pipe:touch {trap}; cat x-{{0..1}}.tar"
    content = {"data": {"class_path": "ImageDataModule", "init_args": {"root": command}}}
    Path("theirs.yaml").write_text(yaml.safe_dump(content))
    words = ["tokenizer", "fit", "-c", "digits", "-c", "theirs.yaml", "--name", "x", "--gpus", "0"]
    assert command_line.main(words) == 2
    assert "commands are run when typed alone: --data.root 'pipe:" in capsys.readouterr().err
    pieces = {"seed_everything": 0, "data": content["data"] | {"init_args": {"val_root": command}}}
    assert fit(pieces) == 2
    assert fit({}, "--data", "ImageDataModule", "--data.root", command) == 0, "it was typed"


def test_what_runs_a_program_has_to_be_typed() -> None:
    settings = {"model": {"evaluation": {"trust_torchscript": True}, "list": ["a", "pipe:b"]}}
    with pytest.raises(UserError, match=r"--model\.evaluation\.trust_torchscript true"):
        require_typed(settings, [])
    with pytest.raises(UserError, match=r"a config sets model\.list to the command `pipe:b`"):
        require_typed(settings, ["--model.evaluation.trust_torchscript", "true"])
    typed = ["--model.evaluation.trust_torchscript", "true"]
    require_typed(settings, [*typed, "--model.list", '["pipe:b"]'])
    require_typed(settings, ["--model.evaluation.trust_torchscript=true", "--model.list=pipe:b"])
    for others in (["--model.list", "pipe:bc"], ["--model.list", "x pipe:b"]):
        with pytest.raises(UserError, match="the command `pipe:b`"):
            require_typed(settings, [*typed, *others])
    for other in ("--model.other.trust_torchscript=true", f"{typed[0]}=false"):
        with pytest.raises(UserError, match=r"trust_torchscript true"):
            require_typed(settings, [other, "--model.list", "pipe:b"])
    require_typed({"model": {"trust_torchscript": False}}, [])


def test_a_cache_is_not_asked_to_run_a_command(tmp_path: Path, trap: Path) -> None:
    from types import SimpleNamespace

    from varlit.data.tokens.verification import reopen_images

    data = {
        "class_path": "varlit.data.images.ImageDataModule",
        "init_args": {"root": f"pipe:touch {trap}; cat x-{{0..1}}.tar"},
    }
    manifest: Any = SimpleNamespace(folder=tmp_path, data=data)
    with pytest.raises(UserError, match="names a command"):
        reopen_images(manifest)
    for path in ("os.system", "varlit_of_another.Mine", "torch.hub.load"):
        manifest.data = data | {"class_path": path}
        with pytest.raises(UserError, match="expected a data module of varlit"):
            reopen_images(manifest)


def test_checkpoints_are_read_as_plain_data_whatever_a_config_says(
    tmp_path: Path, bomb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"hyper_parameters": {}, "state_dict": bomb}, "theirs.ckpt")
    Path("theirs.yaml").write_text("weights_only: false\nckpt_path: theirs.ckpt\n")
    words = ["tokenizer", "fit", "-c", "digits", "-c", "theirs.yaml", "--name", "x", "--gpus", "0"]
    assert command_line.main(words) == 2
    assert "theirs.ckpt" in capsys.readouterr().err
