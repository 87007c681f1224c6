"""The model of a user that appears: once, after an absence."""

from __future__ import annotations

from appliance.gateway.last_models import MOST_USERS, LastModels

ABSENT_S = 120.0


def test_a_user_appears_once_after_an_absence() -> None:
    models = LastModels(ABSENT_S)
    models.used("ada", "a", 0.0)
    models.used("ada", "b", 10.0)
    assert models.appeared("ada", 10.0 + ABSENT_S - 1) is None
    assert models.appeared("ada", 10.0 + 2 * ABSENT_S) == "b"
    assert models.appeared("ada", 11.0 + 2 * ABSENT_S) is None


def test_a_new_user_and_another_user_have_no_model() -> None:
    models = LastModels(ABSENT_S)
    assert models.appeared("eve", 0.0) is None
    models.used("ada", "a", 0.0)
    assert models.appeared("eve", 1000.0) is None


def test_the_number_of_users_is_bounded() -> None:
    models = LastModels(ABSENT_S)
    for number in range(MOST_USERS + 1):
        models.used(str(number), "a", 0.0)
    assert models.appeared("0", 1000.0) is None
    assert models.appeared("1", 1000.0) == "a"
