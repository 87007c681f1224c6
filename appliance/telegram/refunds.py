"""Returns the Stars of a payment, and takes the days that it bought from the user's plan.

Each step may be repeated: Telegram refuses a second refund of a charge, and the gateway counts a refund once.
"""

from __future__ import annotations

from appliance.errors import RequestError, StoreError, UsageError
from appliance.telegram.acting import ActingGateway
from appliance.telegram.channel import Accepted, BotChannel, Declined
from appliance.telegram.store.payments import PaymentStore, StarPayment

REFUNDED_BEFORE = "CHARGE_ALREADY_REFUNDED"


async def refund_payment(
    payments: PaymentStore, channel: BotChannel, gateway: ActingGateway, charge: str
) -> StarPayment:
    """Refund the payment ``charge`` and return it.

    Raises :class:`UsageError` if there is no such payment, or Telegram refuses, and :class:`StoreError` if a step
    has no response: then the same command continues.
    """
    payment = payments.get(charge)
    if payment is None:
        raise UsageError(f"payment {charge[:80]!r} does not exist; `appliance telegram payments` lists them")
    if payment.state == "paid":
        raise UsageError("the gateway has not recorded this payment yet; wait until the bot has reported it")
    outcome = await channel.refund(payment.person, charge)
    if isinstance(outcome, Declined) and REFUNDED_BEFORE not in outcome.reason:
        raise UsageError(f"Telegram refuses the refund: {outcome.reason}")
    if not isinstance(outcome, Accepted | Declined):
        raise StoreError("Telegram did not confirm the refund; run the command again")
    try:
        await gateway.record_refund(payment)
    except RequestError as error:
        # The gateway does not have a payment without an effect.
        if error.status != 404:
            raise StoreError(
                f"the Stars are returned, and the gateway did not record it ({error}); run the command again"
            ) from None
    payments.set_state(charge, "refunded")
    return payment
