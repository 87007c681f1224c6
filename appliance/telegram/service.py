"""The parts of a running bot, which all its chats share."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.contract.model import Telegram
from appliance.telegram.acting import ActingGateway
from appliance.telegram.channel import BotChannel
from appliance.telegram.clock import BotClock
from appliance.telegram.delivery import MessageDelivery
from appliance.telegram.metrics import BotMetrics
from appliance.telegram.store.links import LinkStore
from appliance.telegram.store.payments import PaymentStore
from appliance.telegram.store.turns import TurnStore
from appliance.telegram.topics import ChatTopics


@dataclass(frozen=True, slots=True)
class BotService:
    """The parts of a running bot."""

    settings: Telegram
    channel: BotChannel
    gateway: ActingGateway
    links: LinkStore
    turns: TurnStore
    topics: ChatTopics
    payments: PaymentStore
    delivery: MessageDelivery
    clock: BotClock
    metrics: BotMetrics
    drafts_stop: bool
    """Whether drafts have a stop button of their own."""
