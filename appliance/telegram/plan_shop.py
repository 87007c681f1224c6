"""Plans for Telegram Stars: the offers, the check before a payment, and its effect, exactly once.

1. ``/plan`` shows the present plan and a button for each plan for sale.
2. A button creates an order and sends its invoice.
3. Before Telegram takes the Stars, the bot checks the order again: person, price, and whether the plan is for sale.
4. The payment is stored with its update, then the gateway records it. The bot repeats that until the gateway has
   responded, also after a restart; the gateway counts each payment once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from hashlib import sha256

from appliance.errors import RequestError
from appliance.telegram.acting import PlanMenu
from appliance.telegram.channel import STARS, InlineButton
from appliance.telegram.service import BotService
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.payments import PlanOffer, PlanOrder, StarPayment
from appliance.telegram.texts import text
from appliance.telegram.updates import ChatPlace, CheckoutQuery, PaidInvoice, PressedButton

LOG = logging.getLogger(__name__)

CHECKOUT_S = 7.0
"""Seconds for the check before a payment: Telegram waits 10 s."""

RECORD_RETRY_S = (1.0, 5.0, 15.0, 60.0)
"""Waits before further reports of a payment to the gateway; the last one repeats."""

TITLE_LENGTH, WORDS_LENGTH = 32, 255
MOST_OFFERS = 20


class PlanShop:
    """Sells plans to linked persons."""

    def __init__(self, service: BotService) -> None:
        self._service = service

    async def offer(self, place: ChatPlace, link: PersonLink, language: str) -> None:
        """Show the plan of a person and the plans for sale; raises :class:`RequestError`."""
        if not place.private:
            await self._service.delivery.note(place, text("plan_private", language))
            return
        menu = await self._service.gateway.plans(link)
        words, buttons = plan_words(menu, language), []
        if menu.offers:
            words += "\n\n" + text("plan_offers", language)
            buttons = [_button(one, language) for one in menu.offers[:MOST_OFFERS]]
        await self._service.delivery.note(place, words, buttons)

    async def send_invoice(self, button: PressedButton, link: PersonLink) -> None:
        """Send the invoice of a pressed button; raises :class:`RequestError`."""
        service, language = self._service, button.language
        chosen = button.data.partition(":")[2]
        menu = await service.gateway.plans(link)
        offer = next((one for one in menu.offers if _mark(one) == chosen), None)
        if offer is None or not button.place.private:
            await service.delivery.note(button.place, text("plan_changed", language))
            return
        order = service.payments.order(link, offer, service.clock.now())
        words = text("invoice", language, plan=offer.plan, days=offer.days, user=link.user)
        await service.delivery.paced(
            button.place,
            "invoice",
            lambda place: service.channel.invoice(
                place,
                title=offer.plan[:TITLE_LENGTH],
                words=words[:WORDS_LENGTH],
                payload=order.payload,
                stars=offer.stars,
            ),
        )

    async def check_out(self, query: CheckoutQuery) -> None:
        """Accept or refuse a payment before it is made."""
        refusal = await self._refusal(query)
        outcome = await self._service.channel.answer_checkout(
            query.query_id, text(refusal, query.language) if refusal else ""
        )
        self._service.metrics.count_call("checkout", outcome)

    async def paid(self, paid: PaidInvoice) -> None:
        """Store a payment and let the gateway record it; the same payment again has no effect."""
        payment = self._service.payments.receive(paid, self._service.clock.now())
        if payment is None:
            return
        if payment.state == "unclear":
            await self._unclear(payment, "its order is unknown")
        else:
            await self.record(payment)

    async def record(self, payment: StarPayment) -> None:
        """Repeat the report of a payment until the gateway has recorded or refused it."""
        service, attempt = self._service, 0
        while True:
            try:
                until = await service.gateway.record_payment(payment)
                break
            except RequestError as error:
                if error.status in (400, 404):
                    await self._unclear(payment, str(error))
                    return
                LOG.warning("a payment is not recorded yet (%s); the bot tries again", error.code)
            await service.clock.sleep(RECORD_RETRY_S[min(attempt, len(RECORD_RETRY_S) - 1)])
            attempt += 1
        service.payments.set_state(payment.charge, "recorded")
        words = text("plan_paid", payment.language, plan=payment.plan, until=_until(until, payment.language))
        await service.delivery.note(payment.place, words)

    async def _unclear(self, payment: StarPayment, reason: str) -> None:
        """Report a payment without an effect: the operator refunds it."""
        LOG.error("the payment %s of %d Stars has no effect: %s", payment.charge, payment.stars, reason)
        self._service.payments.set_state(payment.charge, "unclear")
        await self._service.delivery.note(payment.place, text("plan_unclear", payment.language))

    async def _refusal(self, query: CheckoutQuery) -> str | None:
        """Return the name of the text by which a payment is refused; ``None`` if it may be made."""
        service = self._service
        order, link = service.payments.find(query.payload), service.links.of(query.person)
        if order is None or (query.currency, query.stars) != (STARS, order.stars):
            return "plan_changed"
        if link is None or (order.person, order.user) != (query.person, link.user):
            return "plan_other"
        try:
            async with asyncio.timeout(CHECKOUT_S):
                menu = await service.gateway.plans(link)
        except (RequestError, TimeoutError):
            return "plan_unavailable"
        return None if _is_offered(order, menu) else "plan_changed"


def plan_words(menu: PlanMenu, language: str) -> str:
    """Return the present plan of a person in words."""
    if menu.plan is None:
        return text("plan_none", language)
    words = text("plan_now", language, plan=menu.plan, until=_until(menu.until, language))
    return f"{words}\n{menu.price}" if menu.price else words


def _is_offered(order: PlanOrder, menu: PlanMenu) -> bool:
    return any((one.plan, one.stars, one.days) == (order.plan, order.stars, order.days) for one in menu.offers)


def _until(until: float | None, language: str) -> str:
    if until is None:
        return ""
    return text("plan_until", language, date=time.strftime("%Y-%m-%d", time.gmtime(until)))


def _button(offer: PlanOffer, language: str) -> InlineButton:
    label = text("buy", language, plan=offer.plan[:30], stars=offer.stars, days=offer.days)
    return InlineButton(label, f"buy:{_mark(offer)}")


def _mark(offer: PlanOffer) -> str:
    """Return a short mark of an offer with its price: a button of an earlier price does not match."""
    return sha256(f"{offer.plan}:{offer.stars}:{offer.days}".encode()).hexdigest()[:16]
