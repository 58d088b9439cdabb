"""Settings: whatever parses goes to plain data, JSON and YAML, and comes back as it was."""

import json
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.strategies import junk, values_of
from varlit.cli.config.recipes import read_yaml
from varlit.data.formats.shards_file import MAX_PATTERN_FILES, expand_braces
from varlit.errors import UserError
from varlit.generation.rejection.rule import RejectionSettings
from varlit.generation.sampler import SamplingSettings
from varlit.losses.config import TokenizerLossConfig
from varlit.models.config import PlainConfig, TokenizerConfig, VARConfig
from varlit.models.discriminator_config import DiscriminatorConfig
from varlit.models.files import read_model_config
from varlit.training.codebook import CodebookConfig
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.lora import LoRAConfig
from varlit.training.optim import OptimConfig, TokenizerOptimConfig
from varlit.training.tokenizer_measures import TokenizerMeasuresConfig
from varlit.training.var_speed import SpeedConfig

CONFIGS: tuple[type[PlainConfig], ...] = (
    *(TokenizerConfig, VARConfig, EvaluationConfig, OptimConfig, TokenizerOptimConfig),
    *(TokenizerLossConfig, DiscriminatorConfig, CodebookConfig, LoRAConfig, SpeedConfig),
    TokenizerMeasuresConfig,
)
each_config = pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)


def require_words(error: UserError) -> None:
    """Fail where a refusal is empty or more than a person reads."""
    assert 1 <= len(str(error).splitlines()) <= 3


def parsed(kind: type[PlainConfig], plain: Any) -> PlainConfig | None:
    """The settings, or None where they are refused in words that a user can read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.of(plain)
    except UserError as error:
        require_words(error)
        return None


def assert_comes_back(config: PlainConfig) -> None:
    kind, plain = type(config), config.to_dict()
    text, table = json.dumps(plain, allow_nan=False), yaml.safe_dump(plain)
    for again in (plain, json.loads(text), yaml.safe_load(table)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert kind.of(again) == config
    assert kind.of(config) is config


@each_config
@settings(max_examples=25)
@given(st.data())
def test_settings_that_parse_come_back(kind: type[PlainConfig], data: st.DataObject) -> None:
    hints = get_type_hints(kind)
    names = data.draw(st.lists(st.sampled_from(sorted(hints)), unique=True, max_size=4))
    config = parsed(kind, {name: data.draw(values_of(hints[name])) for name in names})
    if config is not None:
        assert_comes_back(config)


@each_config
@settings(max_examples=25)
@given(st.data())
def test_anything_else_is_refused_or_comes_back(
    kind: type[PlainConfig], data: st.DataObject
) -> None:
    hints = get_type_hints(kind)
    names = data.draw(st.lists(st.sampled_from(sorted(hints)), unique=True, max_size=3))
    plain = {name: data.draw(junk) for name in names}
    plain |= data.draw(st.dictionaries(st.text(max_size=6), junk, max_size=1))
    config = parsed(kind, data.draw(st.one_of(st.just(plain), junk)))
    if config is not None:
        assert_comes_back(config)


@given(st.dictionaries(st.sampled_from(sorted(get_type_hints(SamplingSettings))), junk))
def test_sampling_takes_what_it_can_draw_with_and_refuses_the_rest(fields: dict[str, Any]) -> None:
    try:
        made = SamplingSettings(**fields)
    except UserError:
        return
    assert made.top_k >= 0
    assert 0 <= made.top_p <= 1
    assert made.cfg_scale >= 0
    assert made.is_guided in (True, False)


@given(st.floats(allow_nan=True), st.integers(-3, 100), st.integers(0, 1000))
def test_rejection_keeps_the_share_that_it_says(share: float, group: int, wanted: int) -> None:
    try:
        settings_ = RejectionSettings(share, group)
    except UserError:
        assert not 0 < share <= 1 or group < 1
        return
    if share > 1e-6:
        drawn = settings_.num_candidates(wanted)
        assert drawn >= wanted
        assert drawn * share >= wanted * (1 - 1e-6)


@given(st.dictionaries(st.sampled_from(["model", "tokenizer", "var", "num_classes"]), junk))
def test_a_config_of_a_model_is_one_or_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    try:
        (tmp_path / "config.json").write_text(json.dumps(content))
    except TypeError:
        return  # bytes are no JSON
    with pytest.raises(UserError):
        read_model_config(tmp_path)


@given(values_of(tuple[int, ...]), st.integers(1, 64))
def test_a_model_config_comes_back_from_its_file(
    tmp_path: Path, sides: list[int], dim: int
) -> None:
    config = parsed(TokenizerConfig, {"scales": sides, "codebook_dim": dim})
    if config is not None:
        content = {"model": "tokenizer", "tokenizer": config.to_dict()}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert TokenizerConfig.of(read_model_config(tmp_path)["tokenizer"]) == config


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inside: st.one_of(
        st.lists(inside, max_size=4), st.dictionaries(st.text(), inside, max_size=4)
    ),
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_recipes_come_back_from_yaml(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == content


@given(st.one_of(st.text(), st.text(alphabet="[]{}:,-&*!|>'\"#%@ \n\tab0.?")))
def test_any_text_is_a_recipe_or_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8", errors="replace")
    try:
        assert isinstance(read_yaml(tmp_path / "a.yaml"), dict)
    except UserError as error:
        require_words(error)


@given(st.text(alphabet="{},.019ab/", max_size=30))
def test_patterns_of_shards_are_expanded_within_bounds(pattern: str) -> None:
    try:
        names = expand_braces(pattern)
    except UserError:
        return
    assert 1 <= len(names) <= MAX_PATTERN_FILES
    assert not any(brace in name for name in names for brace in "{}")
    if "{" not in pattern:
        assert names == [pattern]
