"""Plans for Telegram Stars: each payment extends a plan once, whatever fails between."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.store.calendar import DAY_S
from appliance.store.models import Account, PlanPayment
from appliance.store.users import UserStore
from appliance.telegram.store.database import BotDatabase
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.payments import PaymentStore, PlanOffer
from appliance.telegram.updates import ChatPlace, PaidInvoice
from tests.fakes.telegram_api import ShownInvoice
from tests.telegram.conftest import PERSON, BotUnderTest
from tests.telegram.test_restart import crash

SHORT = "fake: tokens=3"


def account(bot: BotUnderTest) -> Account:
    users = UserStore(bot.backend.service.data)
    try:
        return users.get(bot.user)
    finally:
        users.close()


def days_left(bot: BotUnderTest) -> int:
    until = account(bot).plan_until
    return 0 if until is None else round((until - bot.clock.begin) / DAY_S)


async def invoice(bot: BotUnderTest, label: str = "basic: 500 Stars, 30 days") -> ShownInvoice:
    await bot.ask("/plan")
    offer = [one for one in bot.api.messages.values() if one.buttons][-1]
    await bot.api.press(offer, label)
    await bot.settled()
    return bot.api.invoices[-1]


async def without_gateway(bot: BotUnderTest) -> None:
    """Restart the bot, which then cannot reach the gateway: an open connection would stay."""
    await bot.stop()
    (bot.base / "bot.sock").unlink()
    await bot.start()


async def pay(bot: BotUnderTest, found: ShownInvoice) -> str:
    checkout = await bot.api.confirm(found)
    await bot.api.until(lambda: checkout.answer == "", "the acceptance")
    return await bot.api.take_stars(checkout)


async def test_a_payment_extends_the_plan_once_also_if_its_update_arrives_twice(bot: BotUnderTest) -> None:
    found = await invoice(bot)
    assert (found.title, found.stars) == ("basic", 500)
    (words,) = await bot.ask("/plan")
    assert words.startswith("You have no plan.\n\nPlans for Telegram Stars. Days of the same plan add up;")
    charge = await pay(bot, found)
    await bot.settled()
    assert bot.api.shown()[-1].startswith("Thank you. Your plan: basic until ")
    assert (account(bot).plan, days_left(bot)) == ("basic", 30)
    shown = len(bot.api.messages)
    await bot.api.repeat()
    await bot.api.until(lambda: bot.repeated() == 1, "the repeated update")
    # The same payment in an update with another number.
    again = [*bot.api.checkouts.values()][-1]
    await bot.api.put({"message": bot.api.payment_message(again, charge)})
    await bot.settled()
    assert (days_left(bot), len(bot.api.messages)) == (30, shown)
    await pay(bot, await invoice(bot))
    await bot.settled()
    assert days_left(bot) == 60, "another payment adds its days"
    assert [one.state for one in bot.bot.service.payments.all()] == ["recorded"] * 2


async def test_a_payment_is_recorded_when_the_gateway_is_back_also_after_a_crash(bot: BotUnderTest) -> None:
    found = await invoice(bot)
    checkout = await bot.api.confirm(found)
    await bot.api.until(lambda: checkout.answer == "", "the acceptance")
    await without_gateway(bot)
    await bot.api.take_stars(checkout)
    await bot.api.until(lambda: len(bot.bot.service.payments.unrecorded()) == 1, "the payment")
    await crash(bot)
    assert account(bot).plan is None
    (bot.base / "bot.sock").symlink_to(bot.backend.socket)
    await bot.start()
    await bot.settled()
    assert bot.api.shown()[-1].startswith("Thank you.")
    assert (account(bot).plan, days_left(bot)) == ("basic", 30)


async def test_a_crash_after_the_record_does_not_extend_again(bot: BotUnderTest) -> None:
    await pay(bot, await invoice(bot))
    await bot.settled()
    (payment,) = bot.bot.service.payments.all()
    # As if the bot ended between the gateway's response and its own record of it.
    bot.bot.service.payments.set_state(payment.charge, "paid")
    await bot.stop()
    await bot.start()
    await bot.settled()
    assert days_left(bot) == 30
    assert [one.state for one in bot.bot.service.payments.all()] == ["recorded"]


async def test_a_payment_is_refused_before_it_is_made(bot: BotUnderTest) -> None:
    found = await invoice(bot)
    await bot.link(person=PERSON + 1)
    other = await bot.api.confirm(found, person=PERSON + 1)
    await bot.api.until(lambda: other.answer is not None, "the response")
    assert other.answer == "This invoice is for another person."
    for payload, stars in ((found.payload, 1), ("order:1:x", 500), ("order:", 500), ("x", 500)):
        checkout = await bot.api.confirm(ShownInvoice(1, PERSON, "x", "x", payload, stars))
        await bot.api.until(lambda one=checkout: one.answer is not None, "the response")
        assert str(checkout.answer).startswith("This offer is not valid any more.")
    users = UserStore(bot.backend.service.data)
    users.change(bot.user, plan="large")
    users.close()
    checkout = await bot.api.confirm(found)
    await bot.api.until(lambda: checkout.answer is not None, "the response")
    assert checkout.answer is not None, "a plan without an end would get one"
    assert checkout.answer.startswith("This offer is not valid")
    await without_gateway(bot)
    checkout = await bot.api.confirm(found)
    await bot.api.until(lambda: checkout.answer is not None, "the response")
    assert str(checkout.answer).startswith("The service cannot be reached now. Nothing was paid")


async def test_a_turn_does_not_delay_the_check_of_a_payment(bot: BotUnderTest) -> None:
    found = await invoice(bot)
    await bot.api.say("fake: tokens=6 hold=3")
    await bot.api.until(lambda: bot.api.visible_draft() is not None, "a running turn")
    await pay(bot, found)
    bot.backend.assistant.release()
    await bot.settled()
    assert days_left(bot) == 30


async def test_a_payment_without_an_effect_is_reported_and_can_be_refunded(bot: BotUnderTest) -> None:
    found = await invoice(bot)
    checkout = await bot.api.confirm(found)
    await bot.api.until(lambda: checkout.answer == "", "the acceptance")
    found.payload = "order:999:unknown"
    charge = await bot.api.take_stars(checkout)
    await bot.settled()
    assert "/paysupport" in bot.api.shown()[-1]
    assert await bot.ask("/paysupport") == [
        "Contact for payments: @operator. Telegram's support cannot help with them."
    ]
    from appliance.telegram.refunds import refund_payment

    service = bot.bot.service
    refunded = await refund_payment(service.payments, service.channel, service.gateway, charge)
    assert refunded.stars == 500
    assert bot.api.charges[charge].refunded


async def test_a_refund_returns_the_stars_and_the_days_once(bot: BotUnderTest) -> None:
    charge = await pay(bot, await invoice(bot))
    await pay(bot, await invoice(bot))
    await bot.settled()
    from appliance.telegram.refunds import refund_payment

    service = bot.bot.service
    for _ in range(2):
        await refund_payment(service.payments, service.channel, service.gateway, charge)
    assert bot.api.charges[charge].refunded
    assert days_left(bot) == 30
    with pytest.raises(UsageError, match="payment 'unknown' does not exist"):
        await refund_payment(service.payments, service.channel, service.gateway, "unknown")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=10))
def test_any_order_and_repetition_of_payments_extends_once_each(events: list[tuple[int, bool]]) -> None:
    """An event is an update of a charge, and whether the bot ends before it stores the gateway's response."""
    with tempfile.TemporaryDirectory() as name:
        users, database = UserStore(Path(name), clock=lambda: 1e9), BotDatabase(Path(name))
        users.create("ada")
        payments = PaymentStore(database)
        link = PersonLink(PERSON, "ada", "0" * 12, 0.0)
        order = payments.order(link, PlanOffer("basic", 500, 30), 1e9)
        for number, (charge, ends) in enumerate(events):
            place = ChatPlace(PERSON, 0, private=True)
            paid = PaidInvoice(number, place, PERSON, "en", "XTR", 500, order.payload, f"charge-{charge}")
            payments.receive(paid, 1e9)
            for one in payments.unrecorded():
                assert (one.user, one.plan, one.days) == ("ada", "basic", 30)
                users.extend_plan(PlanPayment(one.id, "ada", "basic", 30, one.stars, "XTR"))
                if not ends:
                    payments.set_state(one.charge, "recorded")
        until = users.get("ada").plan_until
        bought = len({charge for charge, _ in events})
        assert until == (1e9 + bought * 30 * DAY_S if bought else None)
        database.close()
        users.close()
