"""Published figures: each with its source, found by the shape of a model."""

import pytest

from varlit.metrics.published import (
    PAPER,
    RIVALS,
    RIVALS_512,
    VARS,
    model_name,
    published_figures,
)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((16, 1024, 256, 1000), "d16"),
        ((30, 1920, 256, 1000), "d30"),
        ((36, 2304, 512, 1000), "d36-s"),
        ((36, 2304, 256, 1000), ""),
        ((16, 512, 256, 1000), ""),
        ((16, 1024, 256, 5), ""),
        ((12, 768, 256, 1000), ""),
    ],
)
def test_only_the_paper_s_shapes_have_published_figures(shape, name):
    assert model_name(*shape) == name


def test_figures_come_by_source_under_the_names_of_metrics_json():
    found = published_figures("d16")
    assert found["paper"] == {
        "fid": 3.30,
        "inception_score_mean": 274.4,
        "precision": 0.84,
        "recall": 0.51,
    }
    assert found["official README"] == {"fid": 3.55}
    assert published_figures("d7") == {}


def test_every_figure_has_a_source_and_the_paper_s_row_comes_first():
    for rows in VARS.values():
        assert rows[0].kind == PAPER
    for row in (*RIVALS, *RIVALS_512, *(row for rows in VARS.values() for row in rows)):
        assert row.source
        assert 0 < row.fid < 40
