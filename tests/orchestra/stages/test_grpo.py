"""What a grpo stage says of its training is of the policy that it hands on."""

from orchestra.work.optimising import last_quarter


def test_a_mean_over_the_last_quarter_up_to_the_step_that_is_kept():
    """KL rises by 1 a step, and step 6 does not say it: of 7 values the last, of 8 the last two."""
    course = [{"step": step, "kl": float(step)} for step in range(1, 9)]
    course[5] = {"step": 6, "kl": None}
    assert [last_quarter(course, "kl", until) for until in (8, 4, 3)] == [8.0, 4.0, 3.0]
    assert last_quarter([*course, {"step": 9, "kl": 9.0}], "kl", 9) == 8.5
    assert last_quarter(course, "entropy", 8) is None
