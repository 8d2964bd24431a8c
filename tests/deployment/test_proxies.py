"""Conditional requests through real proxies that compress responses and thereby change entity tags."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support import archive
from tests.support.api import error, new_account
from tests.support.serving import free_port, process, uvicorn, wait_for

NGINX = """
daemon off; master_process off; pid {directory}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; }} }}
}}
"""
APACHE = """
ServerRoot {directory}
ServerName localhost
DefaultRuntimeDir {directory}
PidFile {directory}/pid
ErrorLog /dev/stderr
User nobody
Group nogroup
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule filter_module {modules}/mod_filter.so
LoadModule deflate_module {modules}/mod_deflate.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
Listen 127.0.0.1:{port}
SetOutputFilter DEFLATE
ProxyPass / {url}/
"""
# The program, its configuration, the options to run it with, and what it makes of a tag.
PROXIES = {
    "nginx": (NGINX, ("-e", "stderr", "-c"), 'W/"{}"'),
    "apache2": (APACHE, ("-DFOREGROUND", "-f"), '"{}-gzip"'),
}


@pytest.fixture(scope="module")
def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {"DATABASE_URL": database_url, "AUTH_BACKEND": "tests.support.api:BearerIsIdentity"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with uvicorn(environment, tmp_path_factory.mktemp("cwd")) as url:
        yield url


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest, service: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URL of the service behind a proxy, and the proxy's form of entity tags."""
    configuration, options, form = PROXIES[request.param]
    program = archive.find(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    modules = Path(program).parents[1] / "lib" / "apache2" / "modules"
    port = free_port()
    file = tmp_path / "configuration"
    file.write_text(configuration.format(directory=tmp_path, port=port, url=service, modules=modules))
    with process(program, *options, str(file), environment={}, cwd=tmp_path) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        yield url, form


def test_tags_hold_through_a_compressing_proxy(proxy: tuple[str, str], service: str, database_url: str) -> None:
    url, form = proxy
    owner = new_account(database_url)
    path = f"/api/{owner}/tasks"
    changed = error("Task was changed by another request")
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {owner}", "Accept-Encoding": "gzip"}) as client:
        one = f"{path}/{client.post(path, json={'title': 'Buy milk'}).json()['id']}"
        for read in (path, one):
            answer = client.get(read)
            sent = httpx2.get(service + read, headers={"Authorization": f"Bearer {owner}"}).headers["etag"]
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["etag"] == form.replace("{}", sent.strip('"'))
            assert client.get(read, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
            assert client.get(read, headers={"If-Match": answer.headers["etag"]}).status_code == 200

        tag = {"If-Match": answer.headers["etag"]}
        assert client.put(one, json={"title": "Call Bob"}, headers=tag).status_code == 200
        refused = client.put(one, json={"title": "Call Carol"}, headers=tag)
        assert (refused.status_code, refused.json()) == (412, changed)
        current = client.get(one).headers["etag"]
        assert client.delete(one, headers={"If-None-Match": current}).json() == changed
        assert client.patch(f"{one}/complete", headers={"If-Match": current}).status_code == 200
