"""The words of the operator's page in English and Russian."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = ("en", "ru")

_PAIRS: dict[str, tuple[str, str]] = {
    "title": ("Operator", "Оператор"),
    "overview": ("Overview", "Обзор"),
    "users": ("Users", "Пользователи"),
    "keys": ("Keys", "Ключи"),
    "plans": ("Plans", "Тарифы"),
    "usage": ("Usage", "Использование"),
    "models": ("Models", "Модели"),
    "log_in": ("Log in", "Войти"),
    "log_out": ("Log out", "Выйти"),
    "token": ("Admin token", "Токен администратора"),
    "user": ("user", "пользователь"),
    "name": ("name", "имя"),
    "note": ("note", "заметка"),
    "plan": ("plan", "тариф"),
    "default_plan": ("default plan", "тариф по умолчанию"),
    "no_plan": ("no plan", "без тарифа"),
    "until": ("until", "до"),
    "days": ("days", "дней"),
    "no_end": ("no end", "бессрочно"),
    "today": ("tokens today", "токенов сегодня"),
    "month": ("tokens this month", "токенов за месяц"),
    "state": ("state", "состояние"),
    "active": ("active", "активен"),
    "expired": ("expired", "истёк"),
    "revoked": ("revoked", "отозван"),
    "disabled": ("disabled", "отключён"),
    "action": ("action", "действие"),
    "disable": ("Disable", "Отключить"),
    "enable": ("Enable", "Включить"),
    "create": ("Create", "Создать"),
    "change": ("Change", "Изменить"),
    "revoke": ("Revoke", "Отозвать"),
    "new_user": ("New user", "Новый пользователь"),
    "new_key": ("New key", "Новый ключ"),
    "new_invite": ("Invite code", "Код приглашения"),
    "valid_days": ("valid for days", "действует дней"),
    "label": ("label", "метка"),
    "created": ("created", "создан"),
    "allowed_models": ("models and roles", "модели и роли"),
    "all_models": ("all", "все"),
    "per_minute": ("requests per minute", "запросов в минуту"),
    "shown_once": (
        "Copy it now: it is shown only once.",
        "Скопируйте сейчас: больше он показан не будет.",
    ),
    "made_key": ("The key of {name}", "Ключ пользователя {name}"),
    "made_code": ("The invite code", "Код приглашения"),
    "back": ("Back", "Назад"),
    "price": ("price", "цена"),
    "stars": ("Stars", "Звёзды"),
    "per_day": ("tokens per day", "токенов в день"),
    "per_month": ("tokens per month", "токенов в месяц"),
    "in_flight": ("requests at once", "запросов одновременно"),
    "no_plans": (
        "The site has no plans: add [plans.NAME] to the configuration.",
        "Тарифов нет: добавьте [plans.NAME] в конфигурацию.",
    ),
    "requests": ("requests", "запросов"),
    "failed": ("failed", "с ошибкой"),
    "prompt": ("prompt tokens", "токенов промпта"),
    "cached": ("cached", "из кэша"),
    "completion": ("completion tokens", "токенов ответа"),
    "ttft": ("TTFT p95, ms", "TTFT p95, мс"),
    "by_day": ("Tokens by day", "Токены по дням"),
    "by_user": ("Tokens by user", "Токены по пользователям"),
    "requests_by_day": ("Requests by day", "Запросы по дням"),
    "days_ago": ("days before today", "дней назад"),
    "thousands": ("thousand tokens", "тысяч токенов"),
    "bill": ("Bill", "Счёт"),
    "bill_month": ("month", "месяц"),
    "as_csv": ("Download CSV", "Скачать CSV"),
    "as_json": ("Download JSON", "Скачать JSON"),
    "no_usage": ("No request in this time.", "За это время запросов не было."),
    "period": ("Last {days} days", "Последние {days} дней"),
    "all_users": ("all users", "все пользователи"),
    "show": ("Show", "Показать"),
    "engine": ("engine", "движок"),
    "model": ("model", "модель"),
    "running": ("running", "выполняется"),
    "waiting": ("waiting", "ждут"),
    "reason": ("reason", "причина"),
    "swap": ("Load now", "Загрузить"),
    "drain": ("Drain", "Закрыть"),
    "undrain": ("Undrain", "Открыть"),
    "up": ("up", "работает"),
    "down": ("down", "не работает"),
    "not loaded": ("not loaded", "не загружен"),
    "ready": ("awake", "активен"),
    "asleep": ("asleep", "спит"),
    "stopped": ("stopped", "остановлен"),
    "failed_load": ("failed", "сбой"),
    "draining": ("draining", "завершает запросы"),
    "last_swap": ("Last swap", "Последняя замена"),
    "no_swap": ("No model was loaded since the start of the gateway.", "С запуска шлюза модели не загружались."),
    "swap_ok": ("{engine} was loaded in {seconds} s", "{engine} загружен за {seconds} с"),
    "swap_failed": (
        "{engine} could not be loaded; the attempt took {seconds} s",
        "{engine} не загрузился; попытка заняла {seconds} с",
    ),
    "swap_unloaded": ("unloaded for it: {names}", "выгружены ради него: {names}"),
    "always": ("All models are always loaded.", "Все модели загружены постоянно."),
    "refresh": ("Refresh", "Обновить"),
    "drained": ("drained", "закрыт"),
    "loading": ("loading", "загружается"),
    "paused": ("The gateway is paused: {reason}", "Шлюз приостановлен: {reason}"),
    "engines": ("Engines", "Движки"),
    "on_demand": ("Models on demand", "Модели по запросу"),
    "for": ("for, s", "секунд"),
    "alerts": ("Alerts", "Оповещения"),
    "no_alerts": ("No alert fires.", "Активных оповещений нет."),
    "no_alertmanager": (
        "Alerts are not configured: enable appliance.observe or appliance.notify on this host.",
        "Оповещения не настроены: включите на этом хосте appliance.observe или appliance.notify.",
    ),
    "notices": (
        "Notices that wait for the daily digest; Alertmanager is not configured (appliance.observe).",
        "Сообщения, ждущие ежедневной сводки; Alertmanager не настроен (appliance.observe).",
    ),
    "no_notices": (
        "No notice waits. Alertmanager is not configured (appliance.observe).",
        "Сообщений нет. Alertmanager не настроен (appliance.observe).",
    ),
    "alert": ("alert", "оповещение"),
    "since": ("since", "с"),
    "gateway_down": ("The gateway does not respond: {reason}", "Шлюз не отвечает: {reason}"),
    "engines_up": ("engines up", "движков работает"),
    "requests_now": ("requests now", "запросов сейчас"),
    "requests_today": ("requests in 24 hours", "запросов за сутки"),
    "tokens_24h": ("tokens in 24 hours", "токенов за сутки"),
    "failed_24h": ("failed in 24 hours", "ошибок за сутки"),
    "error": ("The request was rejected", "Запрос отклонён"),
    "invalid_token": ("The admin token is not valid.", "Токен администратора неверен."),
    "too_many": (
        "Too many log-ins failed; wait a minute.",
        "Слишком много неудачных попыток; подождите минуту.",
    ),
    "expires_days": ("expires after days", "истекает через дней"),
    "expires": ("expires", "истекает"),
    "tokens_minute": ("tokens per minute", "токенов в минуту"),
    "revoke_for_good": ("Revoke for good", "Отозвать навсегда"),
    "closed": ("closed by an operator", "закрыто оператором"),
}

TEXTS: dict[str, Mapping[str, str]] = {
    language: {name: pair[index] for name, pair in _PAIRS.items()} for index, language in enumerate(LANGUAGES)
}
"""The words by language."""


def language_of(accept: str) -> str:
    """Return ``ru`` if the header ``Accept-Language`` prefers Russian to English, else ``en``."""
    best, found = 0.0, "en"
    for part in accept.lower().split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            value = float(weight) if weight else 1.0
        except ValueError:
            continue
        language = name.partition("-")[0]
        if language in LANGUAGES and value > best:
            best, found = value, language
    return found
