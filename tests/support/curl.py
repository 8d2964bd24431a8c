"""The options of curl that the guides use, as a function and a command, so that the tests need no curl."""

import argparse
import shlex
import sys
from http.cookiejar import MozillaCookieJar

import httpx2

_parser = argparse.ArgumentParser(prog="curl")
_parser.add_argument("-i", dest="show_head", action="store_true")
_parser.add_argument("-s", dest="is_silent", action="store_true")
_parser.add_argument("-X", dest="method")
_parser.add_argument("-H", dest="headers", action="append", default=[])
_parser.add_argument("-d", dest="body")
_parser.add_argument("-b", dest="cookies_from")
_parser.add_argument("-c", dest="cookies_to")
_parser.add_argument("url")


def curl(command: str) -> tuple[list[str], str]:
    """Run a curl command; return the status line and headers if it has `-i`, and the body."""
    name, *arguments = shlex.split(command.replace("\\\n", ""))
    assert name == "curl"
    return _run(arguments)


def _run(arguments: list[str]) -> tuple[list[str], str]:
    options = _parser.parse_args(arguments)
    cookies = MozillaCookieJar()
    if options.cookies_from:
        cookies.load(options.cookies_from, ignore_discard=True)
    answer = httpx2.request(
        options.method or ("GET" if options.body is None else "POST"),
        options.url,
        headers=[tuple(header.split(": ", 1)) for header in options.headers],
        content=options.body and options.body.encode(),
        cookies=cookies,
    )
    if options.cookies_to:
        cookies.save(options.cookies_to, ignore_discard=True)
    head = [f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"]
    head += [f"{name}: {value}" for name, value in answer.headers.items()]
    return head if options.show_head else [], answer.text


if __name__ == "__main__":
    sys.stdout.write(_run(sys.argv[1:])[1])
