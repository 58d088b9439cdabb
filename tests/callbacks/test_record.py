import json

import pytest

from varlit.callbacks.export import ExportWeights
from varlit.callbacks.record import (
    RunRecord,
    config_changes,
    describe_environment,
    flatten,
    git_commit,
    run_dir,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_run_directory_is_the_loggers_folder(make_trainer, run, tmp_path):
    assert run_dir(make_trainer()) == run
    trainer = make_trainer(default_root_dir=tmp_path / "root")
    trainer.loggers = []
    assert run_dir(trainer) == tmp_path / "root"


def test_every_logged_step_is_a_line_of_plain_json(make_module, make_trainer, digits, run):
    make_trainer(RunRecord()).fit(make_module(), digits)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "loss/total" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "val/quality/psnr" in row] == [5]


def test_numbers_that_json_lacks_become_null(make_module, make_trainer, digits, run):
    trainer = make_trainer(RunRecord())
    trainer.fit(make_module(), digits)
    trainer.loggers[-1].log_metrics({"loss/total": float("nan"), "fine": 1.0})
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["loss/total"], last["fine"]) == (None, 1.0)


def test_each_start_adds_its_environment(make_module, make_trainer, digits, run):
    for _ in range(2):
        make_trainer(RunRecord(), max_steps=1).fit(make_module(), digits)
    text = (run / "environment.txt").read_text()
    assert text.count("started") == 2
    for word in ("command", "commit", "torch", "lightning", "python", "cores"):
        assert word in text


def test_nothing_is_written_when_switched_off(make_module, make_trainer, digits, run):
    make_trainer(RunRecord(enabled=False), max_steps=1).fit(make_module(), digits)
    assert not (run / "environment.txt").exists()
    assert not (run / "metrics.jsonl").exists()


def test_a_commit_is_told_only_inside_a_working_tree(tmp_path):
    assert git_commit(tmp_path) == ""
    assert git_commit(tmp_path / "site-packages") == ""
    assert "commit" in describe_environment()


def test_changes_of_a_config_are_three_lines_and_a_count():
    before = flatten({"model": {"lr": 0.1, "depth": 2}, "seed": 0, "a": [1], "b": 1, "c": {}})
    after = flatten({"model": {"lr": 0.2, "depth": 2}, "seed": 1, "a": [1, 2], "b": 2, "c": {}})
    assert config_changes(before, after) == [
        "  model.lr  0.1 -> 0.2",
        "  seed      0 -> 1",
        "  a         [1] -> [1, 2]",
        "  and 1 more; see fit.yaml",
    ]
    assert config_changes(before, before) == []
    assert config_changes({}, {"new": 1}) == ["  new  (not set) -> 1"]


def test_a_resume_with_another_config_says_what_changed(
    make_module, make_trainer, digits, run, capsys
):
    class SavesConfig(ExportWeights):
        """Writes fit.yaml when Lightning's SaveConfigCallback does: in setup, after ours."""

        def __init__(self, text):
            super().__init__(enabled=False)
            self.text = text

        def setup(self, trainer, pl_module, stage):
            run.mkdir(exist_ok=True)
            (run / "fit.yaml").write_text(self.text)

    trainer = make_trainer(RunRecord(), SavesConfig("model: {lr: 0.1}"), max_steps=2)
    trainer.fit(make_module(), digits)
    trainer.save_checkpoint(run / "last.ckpt")
    assert "config changed" not in capsys.readouterr().out
    (run / "fit.yaml").write_text("model: {lr: 7}")  # a start that failed before its first step
    trainer = make_trainer(RunRecord(), SavesConfig("model: {lr: 0.5}"), max_steps=4)
    trainer.fit(make_module(), digits, ckpt_path=run / "last.ckpt")
    said = capsys.readouterr().out
    assert "config changed since this checkpoint was written:\n  model.lr  0.1 -> 0.5\n" in said


def test_weights_are_exported_with_every_checkpoint(make_module, make_trainer, digits, run):
    trainer = make_trainer(ExportWeights(), max_steps=1)
    trainer.fit(make_module(), digits)
    assert not (run / "config.json").exists()
    trainer.save_checkpoint(run / "any.ckpt")
    assert (run / "config.json").exists()
