"""`zipper serve` and `zipper web`"""

import argparse
from importlib.util import find_spec

from zipper.errors import ConfigError
from zipper.generation.zipper import Zipper
from zipper.stop import Stopped


def serve(args: argparse.Namespace) -> None:
    """Serve a model until a signal arrives; requests that wait are answered first. Raises ConfigError without
    the packages of the extra `serve`, or if the address is taken."""
    extra, page = ("web", ["gradio"]) if args.command == "web" else ("serve", [])
    needed = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", *page)
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(f"zipper {extra} needs {missing[0]}: pip install -e '.[{extra}]'.")
    import uvicorn

    from zipper.serving.app import create_app
    from zipper.serving.middleware import Limits

    limits = Limits(args.batch, args.waiting, args.megabytes, args.seconds)
    name = args.model.resolve().name
    app = create_app(Zipper.from_pretrained(args.model), name, limits, page=bool(page))
    print(f"{name}: http://{args.host}:{args.port}{'' if page else '/v1'}")
    grace = 5 if page else 60  # seconds; an open page always waits for news
    try:
        uvicorn.run(app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=grace)
    except Stopped as stop:
        print(f"{stop}: stopped")
    except SystemExit as error:  # uvicorn logs the reason
        raise ConfigError(
            f"--host {args.host} --port {args.port} cannot be used. Choose another --port."
        ) from error
