import json
import re

import pytest
import torch
import yaml

from varlit.callbacks.codebook import CodebookWatch
from varlit.callbacks.record import RunRecord
from varlit.metrics.codebook import CodebookUsage
from varlit.training.codebook import CodebookConfig

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(make_module, make_trainer, digits, watch, max_steps=6):
    trainer = make_trainer(RunRecord(), watch, max_steps=max_steps, val_check_interval=2)
    trainer.fit(make_module(), digits)


def fit_collapsed(make_module, make_trainer, digits, max_steps):
    """A tokenizer with 64 codes that only ever uses one; looks at steps 2, 4, 7, 9, ..."""
    module = make_module()
    module.validation_usage = CodebookUsage(module.network.scales, 64)
    module.network.encode = lambda images: torch.zeros(len(images), 21, dtype=torch.long)
    make_trainer(CodebookWatch(), max_steps=max_steps, val_check_interval=2).fit(module, digits)


def test_usage_by_scale_is_logged_and_drawn_at_validations(make_module, make_trainer, digits, run):
    fit(make_module, make_trainer, digits, CodebookWatch())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looked = [row for row in rows if "codebook/usage" in row]
    assert [row["step"] for row in looked] == [2, 4]
    for name in ("01x01", "02x02", "04x04"):
        assert 0 < looked[0][f"codebook/usage_by_scale/{name}"] <= 1
        assert looked[0][f"codebook/perplexity_by_scale/{name}"] >= 1
        attainable = looked[0][f"codebook/attainable_by_scale/{name}"]
        assert looked[0][f"codebook/usage_by_scale/{name}"] <= attainable <= 1
    assert (run / "pictures" / "codebook" / "step-0000004.png").exists()


def test_looks_keep_their_distance_and_zero_is_off(make_module, make_trainer, digits, run):
    fit(make_module, make_trainer, digits, CodebookWatch(every_n_steps=3))
    assert len(list((run / "pictures" / "codebook").iterdir())) == 1
    fit(make_module, make_trainer, digits, CodebookWatch(every_n_steps=0))
    assert len(list((run / "pictures" / "codebook").iterdir())) == 1


def test_a_lasting_collapse_is_told_once_a_scale_with_the_cure(
    make_module, make_trainer, digits, capsys
):
    fit_collapsed(make_module, make_trainer, digits, max_steps=15)
    told = [line for line in capsys.readouterr().out.splitlines() if "collapse" in line]
    assert len(told) == 3
    assert "scale 01x01 uses 1.6 % of the codes (100 % in reach) since step 2" in told[0]
    assert "docs/reading-the-curves.md#collapse" in told[0]
    flags = re.findall(r"--model\.codebook\.(\w+) (\w+(?:\.\d+)?)", told[0])
    assert CodebookConfig(**{name: yaml.safe_load(value) for name, value in flags}).counts_hits
    assert len(flags) == 2


def test_two_looks_are_not_enough_to_call_it_a_collapse(make_module, make_trainer, digits, capsys):
    fit_collapsed(make_module, make_trainer, digits, max_steps=6)
    assert "collapse" not in capsys.readouterr().out


def test_few_tokens_are_not_blamed(make_module, make_trainer, digits, capsys):
    module = make_module()
    # One image hits one code of 64 at 1x1, which is all that it can.
    module.validation_usage = CodebookUsage(module.network.scales, 64)
    module.validation_step = lambda batch, batch_idx: module.validation_usage.update(
        torch.arange(21)[None]
    )
    make_trainer(CodebookWatch(), max_steps=9, val_check_interval=2).fit(module, digits)
    assert "collapse" not in capsys.readouterr().out
