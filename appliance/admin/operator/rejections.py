"""The messages of refused forms in the language of the operator's page.

The stores and the gateway write English. A message without a row in the table is shown as it is.
"""

from __future__ import annotations

import re

_RUSSIAN: tuple[tuple[str, str], ...] = (
    (r"(?P<field>[\w.]+): write a whole number", "{field}: введите целое число"),
    (r"(?P<field>[\w.]*): control characters are not allowed", "{field}: управляющие символы недопустимы"),
    (
        r"(?P<field>[\w.]+): Input should be greater than or equal to (?P<least>[\d.]+)",
        "{field}: значение должно быть не меньше {least}",
    ),
    (
        r"(?P<field>[\w.]+): Input should be greater than (?P<least>[\d.]+)",
        "{field}: значение должно быть больше {least}",
    ),
    (
        r"(?P<field>[\w.]+): Input should be less than or equal to (?P<most>[\d.]+)",
        "{field}: значение должно быть не больше {most}",
    ),
    (
        r"(?P<field>[\w.]+): String should have at most (?P<most>\d+) characters",
        "{field}: не больше {most} символов",
    ),
    (r"(?P<field>[\w.]+): String should match pattern .*", "{field}: недопустимые символы или неверная длина"),
    (r"(?P<field>[\w.]+): .*", "{field}: недопустимое значение"),
    (r"plan (?P<name>'.*') does not exist; known: (?P<known>.*)", "тарифа {name} нет; есть: {known}"),
    (r"model or role (?P<name>'.*') does not exist", "модели или роли {name} нет"),
    (r"Replica (?P<name>'.*') does not exist.*", "реплики {name} нет"),
    (r"The model `(?P<name>.*)` does not exist.*", "модели {name} нет"),
    (r"the name (?P<name>\S+) is taken; choose another one", "имя {name} занято; выберите другое"),
    (r"user (?P<name>'.*') does not exist.*", "пользователя {name} нет"),
    (
        r"(?:days|plan_until) needs a plan; the default plan has no end",
        "срок нужен только вместе с тарифом: тариф по умолчанию бессрочный",
    ),
    (r"a key with that id does not exist.*", "ключа с таким номером нет"),
    (r"the code must expire after now.*", "код должен истекать после этого момента и до 10000 года"),
    (r"days is (?P<days>\S+); it must be from 1 to (?P<most>\d+).*", "дней должно быть от 1 до {most}"),
    (
        r"the note must have at most (?P<most>\d+) printable characters",
        "заметка: не больше {most} печатных символов",
    ),
    (r"the name has more than (?P<most>\d+) characters.*", "метка: не больше {most} символов"),
    (r"plan_until is .*; it must be a time from 1970 to 9999", "тариф должен закончиться до 10000 года"),
    (r"No engine of this site is loaded on demand.*", "все движки загружены постоянно: заменять нечего"),
    (r"The form is not from this page", "форма отправлена не с этой страницы"),
    (r"The body is not a form", "запрос не содержит формы"),
    (r"The form is not valid UTF-8, or has too many fields", "форма не в UTF-8, или в ней слишком много полей"),
    (r"A form has at most (?P<most>\d+) bytes", "форма не может быть больше {most} байт"),
    (
        r"no gateway responds on (?P<path>\S+) \((?P<reason>.*)\).*",
        "шлюз не отвечает на {path} ({reason}); запустите его или укажите конфигурацию ключом --config",
    ),
    (
        r"(?P<path>\S+) belongs to the gateway's user.*",
        "{path} принадлежит учётной записи шлюза; запустите эту программу от её имени",
    ),
    (
        r"(?P<name>\S+): (?:cannot be opened|the database refuses) \((?P<reason>.*?)\);.*",
        "{name}: база данных отказала ({reason}); подробности покажет journalctl -u appliance-admin",
    ),
    (
        r"(?P<path>\S+) cannot be (?:written|read) \((?P<reason>.*?)\);.*",
        "{path}: нет доступа на чтение или запись ({reason})",
    ),
)
"""Patterns of whole messages and their Russian texts; the first that matches holds."""


def rejection_in(language: str, message: str) -> str:
    """Return ``message`` in ``language``, ``en`` or ``ru``; unchanged if it has no translation."""
    if language != "ru":
        return message
    for pattern, russian in _RUSSIAN:
        found = re.fullmatch(pattern, message, re.DOTALL)
        if found:
            return russian.format(**found.groupdict())
    return message
