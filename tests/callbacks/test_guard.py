import pytest

from varlit.callbacks.guard import Guard
from varlit.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_bad_steps": 0}, r"1\.\.guard.window_steps; got 0 of 100"),
        ({"max_bad_steps": 9, "window_steps": 8}, "got 9 of 8"),
        ({"roll_backs": -1}, "must not be negative"),
        ({"spike": -1.0}, "must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Guard(**settings)
