"""A process that starts the sender again and again without its import: each line on standard input forks one.

Arguments: outbox, file with the token, address of the Bot API. It prints the pid of each sender.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.watch.notify import NotifySettings, serve
from appliance.watch.telegram_bot import read_token
from tests.fakes.bot_api import CHAT


def main() -> None:
    outbox, token_file, api = sys.argv[1:]
    settings = NotifySettings(
        outbox=Path(outbox), token_file=Path(token_file), chat=CHAT, host="gpu", api=api, port=0, digest_hour=0
    )
    token = read_token(settings.token_file)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(serve(settings, token))
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
