import math
import random
import re

from varlit.callbacks.spikes import QUIET_STEPS, SpikeWatch


def told(losses, limit=8.0, start=1):
    watch = SpikeWatch(limit)
    found = {step: watch.add(step, loss) for step, loss in enumerate(losses, start)}
    return {step: text for step, text in found.items() if text}


def wavering(count, level=2.0, width=0.1, seed=0):
    draw = random.Random(seed)
    return [level + draw.gauss(0, width) for _ in range(count)]


def test_a_jump_that_stays_is_told_within_a_few_steps_and_once():
    found = told([*wavering(300), *wavering(200, level=4.0, seed=1)])
    assert len(found) == 1
    ((step, text),) = found.items()
    assert 301 <= step <= 310
    assert re.match(r"loss spike: (3\.9|4\.0)\d* at step .*, usual (1\.9|2\.0)", text)


def test_after_a_while_another_one_is_told_again():
    losses = [*wavering(300), *wavering(20, level=9.0), *wavering(QUIET_STEPS + 300)]
    assert len(told([*losses, *wavering(20, level=9.0)])) == 2


def test_noise_single_outliers_and_a_falling_loss_are_no_spikes():
    falling = [8.3 * math.exp(-step / 800) + 1 for step in range(3000)]
    outliers = wavering(3000)
    outliers[200::97] = [50.0] * len(outliers[200::97])
    for seed in range(3):
        assert told(wavering(3000, seed=seed)) == {}
    assert told(falling) == {}
    assert told(outliers) == {}


def test_a_loss_that_has_settled_may_tremble():
    assert told([1.0] * 300 + [1.01] * 50) == {}
    assert len(told([1.0] * 300 + [1.2] * 50)) == 1


def test_it_can_be_turned_off_and_needs_a_past():
    jump = [*wavering(300), *wavering(50, level=40.0)]
    assert told(jump, limit=0.0) == {}
    assert told([*wavering(20), *wavering(50, level=40.0)]) == {}
    watch = SpikeWatch(8.0)
    for step, loss in enumerate(wavering(300)):
        watch.add(step, loss)
    watch.forget()
    assert not any(watch.add(step, 40.0) for step in range(300, 350))


def test_nan_is_not_its_business():
    losses = wavering(300)
    losses[10::7] = [math.nan] * len(losses[10::7])
    assert told(losses) == {}
