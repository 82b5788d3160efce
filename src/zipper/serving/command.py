"""`zipper serve` and `zipper web`"""

import argparse
import signal
from importlib.util import find_spec

from zipper.errors import ConfigError
from zipper.generation.zipper import Zipper
from zipper.stop import Stopped, handled_signals


def serve(args: argparse.Namespace) -> None:
    """Serve a model until a signal arrives; requests that wait are answered first. Raises ConfigError without
    the packages of the extra `serve`, or if the address is taken."""
    extra, page = ("web", ["gradio"]) if args.command == "web" else ("serve", [])
    needed = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", *page)
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(f"zipper {extra} needs {missing[0]}: pip install -e '.[{extra}]'.")
    import uvicorn
    from uvicorn.server import HANDLED_SIGNALS

    from zipper.serving.app import create_app
    from zipper.serving.middleware import Limits

    limits = Limits(args.batch, args.waiting, args.megabytes, args.seconds)
    name = args.model.resolve().name
    app = create_app(Zipper.from_pretrained(args.model), name, limits, page=bool(page))
    print(f"{name}: http://{args.host}:{args.port}{'' if page else '/v1'}")
    grace = 5 if page else 60  # seconds; an open page always waits for news
    config = uvicorn.Config(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=grace
    )
    server, ended = uvicorn.Server(config), []

    def end(number: int, _: object) -> None:
        ended.append(signal.Signals(number).name)
        server.should_exit = True

    # It handles two of our signals itself; the others would raise in the midst of a request.
    others = [number for number in handled_signals() if number not in HANDLED_SIGNALS]
    before = {number: signal.signal(number, end) for number in others}
    try:
        server.run()
    except Stopped as stop:
        ended.append(str(stop))
    except SystemExit as error:  # uvicorn logs the reason
        raise ConfigError(
            f"--host {args.host} --port {args.port} cannot be used. Choose another --port."
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended:
        print(f"{ended[0]}: stopped")
