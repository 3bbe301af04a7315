"""Download jars from Maven Central or a mirror. Its errors say why a download failed, and what to set."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from brewctl.errors import BrewError, UsageError
from brewctl.sandbox import parts

if TYPE_CHECKING:
    from jgo.maven import MavenContext

MIRROR = "BREW_MAVEN_REPOSITORY"
# Variables that name a file of trusted certificates; the first one that is set wins. requests reads only the first two.
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_AGAIN = "connect once; later starts need no network"


def repository(environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL that jars are downloaded from: BREW_MAVEN_REPOSITORY, else Maven Central. Raises UsageError."""
    if not (named := environ.get(MIRROR, "").rstrip("/")):
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415 - an extra

        return str(MAVEN_CENTRAL_URL)
    try:
        parsed = urlsplit(named)
        usable = parsed.scheme in {"http", "https"} and bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        usable = False
    if not usable:
        # The error does not quote the URL, which may contain a password.
        raise UsageError(
            f"{MIRROR} is no http or https URL", hint="for example https://maven.example/repository/central"
        )
    return named


def context(folder: Path) -> "MavenContext":
    """Return jgo's context for downloads into `folder`. Raises BrewError where the extra is not installed."""
    try:
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415 - an extra
    except ImportError:
        raise parts.missing("jgo") from None
    return MavenContext(resolver=PythonResolver(), repo_cache=folder, remote_repos={"central": repository()})


def download(folder: Path, coordinate: str) -> None:
    """Download a jar into `folder`. Raises BrewError with the setting that may help."""
    means, url = context(folder), repository()
    what = f"can't download {coordinate} from {_place(url)}"
    _trust(url)
    from requests import exceptions  # noqa: PLC0415 - jgo's, and so of the extra

    try:
        means.create_dependency(coordinate + "!").artifact.resolve()
    except exceptions.SSLError as error:
        trusted = next((name for name in _CERTIFICATES if os.environ.get(name)), "SSL_CERT_FILE")
        hint = f"set {trusted} to a file that includes its authority, such as that of a proxy which intercepts TLS"
        raise BrewError(f"{what}: the server's certificate is not trusted", hint=hint) from error
    except exceptions.ProxyError as error:
        proxy, hint = _proxy(url), f"mend it, or set no_proxy={urlsplit(url).hostname}"
        raise BrewError(f"{what}: the proxy in {proxy} does not let it through", hint=hint) from error
    except exceptions.InvalidSchema as error:
        proxy, hint = _proxy(url), "name an http proxy there, or `pip install pysocks`"
        raise BrewError(f"{what}: the proxy in {proxy} is of an unknown kind", hint=hint) from error
    except exceptions.RequestException as error:
        hint = f"mend {MIRROR}, or unset it" if os.environ.get(MIRROR) else f"{_AGAIN}; or set {MIRROR} to a mirror"
        raise BrewError(f"{what} ({type(error).__name__})", hint=hint) from error
    except OSError as error:
        raise _unwritten(what, folder, error) from error
    except (RuntimeError, ValueError, LookupError) as error:
        # jgo's message quotes the URL, which may contain a password.
        hint = f"set {MIRROR} to a whole mirror" if os.environ.get(MIRROR) else "try again later"
        raise BrewError(f"{what}: it is not there", hint=hint) from error


def _unwritten(what: str, folder: Path, error: OSError) -> BrewError:
    for name in _CERTIFICATES:
        # requests raises OSError for a certificate file that does not exist.
        if (named := os.environ.get(name)) and not Path(named).exists():
            return BrewError(f"{what}: {name} names {named}, which is not there", hint=f"unset {name}, or mend it")
    place = error.filename or folder
    reason = (error.strerror or str(error)).lower()
    hint = "make room, or set XDG_CACHE_HOME to a folder of yours on another disk"
    return BrewError(f"{what}: {place} can't be written ({reason})", hint=hint)


def _trust(url: str) -> None:
    """Pass SSL_CERT_FILE, which requests does not read, on in a variable that it reads."""
    if url.startswith("https:") and not any(os.environ.get(name) for name in _CERTIFICATES[:-1]):
        named = os.environ.get(_CERTIFICATES[-1])
        if named and Path(named).is_file():
            os.environ[_CERTIFICATES[0]] = named


def _place(url: str) -> str:
    """Return a repository's name for a message, without the secrets of its URL."""
    if not os.environ.get(MIRROR):
        return "Maven Central"
    parsed = urlsplit(url)
    return f"{parsed.hostname}{f':{parsed.port}' if parsed.port else ''}, which {MIRROR} names"


def _proxy(url: str) -> str:
    """Return the name of the variable that sets the proxy for this URL."""
    scheme = urlsplit(url).scheme
    names = [name for stem in (f"{scheme}_proxy", "all_proxy") for name in (stem, stem.upper())]
    return next((name for name in names if os.environ.get(name)), "the system's settings")
