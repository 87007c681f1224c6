"""Every text that persons read from the bot, in English and Russian: one table, by name and language."""

from __future__ import annotations

LANGUAGES = ("en", "ru")

TEXTS: dict[str, tuple[str, str]] = {
    "linked": (
        "Linked to {user}. Send a message to begin. /help lists the commands.",
        "Готово, вы подключены как {user}. Просто напишите сообщение. Команды: /help",
    ),
    "code_invalid": (
        "This code is not valid. The operator of the service makes a new one.",
        "Этот код не действует. Новый код выдаёт администратор сервиса.",
    ),
    "stranger": (
        "This bot serves linked users only. The operator of the service makes a link.",
        "Этот бот работает только для подключённых пользователей. Ссылку выдаёт администратор сервиса.",
    ),
    "unlinked": (
        "The link is removed. Your chats stay on the server; the operator makes a new link.",
        "Связь удалена. Чаты остаются на сервере; новую ссылку выдаёт администратор.",
    ),
    "revoked": (
        "Your key is not valid any more. Request a new link from the operator of the service.",
        "Ваш ключ больше не действует. Попросите у администратора сервиса новую ссылку.",
    ),
    "help": (
        (
            "Write a message, and the model responds.\n\n"
            "/new: start a new conversation.\n"
            "/stop: stop the response.\n"
            "/retry: repeat the last turn.\n"
            "/model: choose a model.\n"
            "/role: choose a role.\n"
            "/usage: show your turns and tokens.\n"
            "/plan: show your plan, and plans for sale.\n"
            "/unlink: remove the link to your account.\n\n"
            "Edit your last message to change it: the turn is repeated. Files enter the memory of the conversation."
        ),
        (
            "Напишите сообщение — модель ответит.\n\n"
            "/new — новый разговор\n"
            "/stop — остановить ответ\n"
            "/retry — повторить последний запрос\n"
            "/model — выбрать модель\n"
            "/role — выбрать роль\n"
            "/usage — ваши запросы и токены\n"
            "/plan — ваш тариф и тарифы для покупки\n"
            "/unlink — отключить бота от вашей учётной записи\n\n"
            "Если исправить последнее сообщение, запрос повторится. Файлы попадают в память разговора."
        ),
    ),
    "new_chat": ("A new conversation begins.", "Начат новый разговор."),
    "topic": ("New chat", "Новый чат"),
    "choose_model": ("Model of this chat: {name}", "Модель этого чата: {name}"),
    "choose_role": ("Role of this chat: {name}", "Роль этого чата: {name}"),
    "no_roles": ("This site has no roles.", "Ролей нет."),
    "chosen": ("From now on: {name}", "Теперь используется: {name}"),
    "default": ("default", "по умолчанию"),
    "model_gone": (
        "The model {name} is not available. /model chooses another one.",
        "Модель {name} недоступна. Другую можно выбрать командой /model",
    ),
    "no_model": ("No model is available for your key.", "Для вашего ключа нет доступных моделей."),
    "usage": (
        (
            "Through this bot:\n24 hours: {day_turns} turns, {day_tokens} tokens\n30 days: {month_turns} turns, "
            "{month_tokens} tokens"
        ),
        (
            "Через этого бота:\nза 24 часа: запросов {day_turns}, токенов {day_tokens}\nза 30 дней: запросов "
            "{month_turns}, токенов {month_tokens}"
        ),
    ),
    "stop": ("Stop", "Стоп"),
    "again": ("Send again", "Отправить ещё раз"),
    "working": ("…", "…"),
    "stopped": ("(stopped)", "(остановлено)"),
    "nothing_stopped": ("Stopped before the first word.", "Остановлено до первого слова."),
    "nothing_runs": ("No response is being generated.", "Сейчас ничего не выполняется."),
    "nothing_to_retry": ("No turn can be repeated.", "Повторять нечего."),
    "only_last": ("Only the last message can be changed.", "Изменить можно только последнее сообщение."),
    "unconfirmed": (
        "Telegram did not confirm a message. If it is missing above, send it again.",
        "Телеграм не подтвердил одно сообщение. Если его нет выше, отправьте его ещё раз.",
    ),
    "restarted": (
        "The bot restarted before the response was complete. /retry repeats the turn.",
        "Бот перезапустился до конца ответа. /retry повторит запрос.",
    ),
    "cut": (
        "(The bot restarted, so the response ends here. /retry repeats the turn.)",
        "(Бот перезапустился, поэтому ответ обрывается. /retry повторит запрос.)",
    ),
    "limited": (
        "Your limit is reached. Try again in {seconds} s.",
        "Ваш лимит исчерпан. Попробуйте снова через {seconds} с.",
    ),
    "limited_later": ("Your limit is reached. Try again later.", "Ваш лимит исчерпан. Попробуйте позже."),
    "unavailable": (
        "The model cannot respond now. Try /retry in a moment.",
        "Модель сейчас недоступна. Попробуйте /retry чуть позже.",
    ),
    "rejected": ("The server rejects the request: {reason}", "Сервер отклонил запрос: {reason}"),
    "too_long_context": (
        "The conversation is too long for the model. /new starts a new one.",
        "Разговор слишком длинный для модели. Новый: /new",
    ),
    "incomplete": ("(The response reached its limit.)", "(Ответ достиг предела длины.)"),
    "empty": ("(empty response)", "(пустой ответ)"),
    "as_file": ("The response is long; it is in this file.", "Ответ длинный, он в этом файле."),
    "sources": ("Sources: {names}", "Источники: {names}"),
    "no_voice": (
        "Voice messages are not available on this server. Write the text instead.",
        "Голосовые сообщения на этом сервере недоступны. Напишите текстом.",
    ),
    "voice_too_long": (
        "The recording is too long for this server. Send a shorter one.",
        "Запись слишком длинная для этого сервера. Отправьте покороче.",
    ),
    "voice_unreadable": (
        "The recording cannot be read. Send it again, or write the text.",
        "Запись не читается. Отправьте её ещё раз или напишите текстом.",
    ),
    "voice_silent": ("The recording has no words.", "В записи нет слов."),
    "heard": ("Recognised: {text}", "Распознано: {text}"),
    "no_vision": ("The model {name} does not accept images.", "Модель {name} не принимает изображения."),
    "no_attachment": (
        "This kind of message is not supported. Send text, a photo, a voice message or a file.",
        "Такие сообщения не поддерживаются. Отправьте текст, фото, голосовое сообщение или файл.",
    ),
    "file_too_large": (
        "The file is larger than 20 MB, the limit for bots. Send a smaller one.",
        "Файл больше 20 МБ, это предел для ботов. Отправьте файл поменьше.",
    ),
    "image_too_large": ("The image is larger than 10 MB.", "Изображение больше 10 МБ."),
    "file_added": (
        "{name} enters the memory of this conversation.",
        "Файл {name} добавляется в память разговора.",
    ),
    "file_failed": ("{name} cannot be read: {reason}", "Файл {name} не читается: {reason}"),
    "download_failed": (
        "Telegram did not deliver the file. Send it again.",
        "Телеграм не отдал файл. Отправьте его ещё раз.",
    ),
    "plan_none": ("You have no plan.", "У вас нет тарифа."),
    "plan_now": ("Your plan: {plan}{until}", "Ваш тариф: {plan}{until}"),
    "plan_until": (" until {date}", " до {date}"),
    "plan_offers": (
        "Plans for Telegram Stars. Days of the same plan add up; another plan replaces yours at once.",
        "Тарифы за Telegram Stars. Дни того же тарифа складываются; другой тариф сразу заменяет ваш.",
    ),
    "plan_private": ("Plans are sold in the private chat with the bot.", "Тарифы продаются в личном чате с ботом."),
    "buy": ("{plan}: {stars} Stars, {days} days", "{plan}: {stars} Stars, дней: {days}"),
    "invoice": (
        "{days} days of the plan {plan} for {user}. Another plan is replaced at once.",
        "Тариф {plan} для {user}, дней: {days}. Другой тариф заменяется сразу.",
    ),
    "plan_changed": (
        "This offer is not valid any more. /plan shows the present ones.",
        "Это предложение больше не действует. Актуальные тарифы: /plan",
    ),
    "plan_other": ("This invoice is for another person.", "Этот счёт выставлен другому человеку."),
    "plan_unavailable": (
        "The service cannot be reached now. Nothing was paid; try again later.",
        "Сервис сейчас недоступен. Оплата не прошла; попробуйте позже.",
    ),
    "plan_paid": ("Thank you. Your plan: {plan}{until}", "Спасибо. Ваш тариф: {plan}{until}"),
    "plan_unclear": (
        "The payment arrived, and the plan could not be extended. /paysupport has the contact for a refund.",
        "Оплата получена, но тариф не удалось продлить. Контакт для возврата: /paysupport",
    ),
    "pay_support": (
        "Contact for payments: {contact}. Telegram's support cannot help with them.",
        "Вопросы об оплате: {contact}. Поддержка Telegram с ними не поможет.",
    ),
    "no_pay_support": ("This bot sells nothing.", "Этот бот ничего не продаёт."),
}
"""Texts by name: English, Russian. Words in braces are parameters."""


def language_of(code: str | None) -> str:
    """Return the language of the table for a ``language_code`` of Telegram; English for any other."""
    return "ru" if (code or "").lower().partition("-")[0] in ("ru", "be", "uk", "kk") else "en"


def text(name: str, language: str, /, **values: object) -> str:
    """Return the text ``name`` in ``language`` with its parameters. Values are inserted as they are."""
    return TEXTS[name][LANGUAGES.index(language)].format(**values)
