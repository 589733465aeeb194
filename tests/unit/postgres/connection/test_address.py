"""The URL of a store on a server: its parts, its mistakes, and what of it is shown."""

from __future__ import annotations

import pytest

from asyncrunner.errors import ConfigurationError
from asyncrunner.postgres.connection.address import parse_address, shown

DIRECT = "postgresql%3A%2F%2Fme%3Asecret%40server%3A5433%2Fjobs"


@pytest.mark.parametrize(
    ("location", "dsn", "schema"),
    [
        ("postgresql://me@host:5432/jobs", "postgresql://me@host:5432/jobs", "asyncrunner"),
        ("postgres://host/jobs?schema=mails", "postgres://host/jobs", "mails"),
        (
            "postgresql://me:a%2Fb@h1:1,h2:2/jobs?sslmode=require&schema=s&application_name=my%20app",
            "postgresql://me:a%2Fb@h1:1,h2:2/jobs?sslmode=require&application_name=my%20app",
            "s",
        ),
        ("postgresql://[::1]:5432/jobs", "postgresql://[::1]:5432/jobs", "asyncrunner"),
        ("postgresql:///jobs?host=/tmp&port=5432", "postgresql:///jobs?host=%2Ftmp&port=5432", "asyncrunner"),
        ("postgresql://%2Ftmp/jobs?work_mem=64MB", "postgresql://%2Ftmp/jobs?work_mem=64MB", "asyncrunner"),
    ],
)
def test_the_driver_gets_all_but_the_own_parameters(location: str, dsn: str, schema: str) -> None:
    assert parse_address(location)[:2] == (dsn, schema)


def test_a_direct_url_is_a_second_url() -> None:
    address = parse_address(f"postgresql://me:secret@pooler/jobs?direct={DIRECT}&schema=s")
    assert (address.dsn, address.direct) == ("postgresql://me:secret@pooler/jobs", "postgresql://me:secret@server:5433/jobs")
    assert address.shown == "postgresql://me@pooler/jobs?direct=postgresql://me@server:5433/jobs&schema=s"
    assert "secret" not in repr(address) + str(address)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("postgresql://me:secret@host:port/jobs", "postgresql://me@host:port/jobs: the port is not a number from 1 to 65535"),
        ("postgresql://host:/jobs", "the port is not a number"),
        ("postgresql://host:0/jobs", "the port is not a number"),
        ("postgresql://host:65536/jobs", "the port is not a number"),
        ("postgresql://a:1,b:x/jobs", "the port is not a number"),
        ("postgresql:///jobs?port=x", "port=x is not a number"),
        ("postgresql://host/jobs?schema=", "the parameter 'schema' is empty"),
        ("postgresql://host/jobs?schema=Jobs", "schema=Jobs: give a name of its own for the schema"),
        ("postgresql://host/jobs?schema=public", "schema=public: give a name of its own"),
        ("postgresql://host/jobs?schema=pg_jobs", "schema=pg_jobs: give a name of its own"),
        ('postgresql://host/jobs?schema=a"; DROP', "give a name of its own"),
        ("postgresql://host/jobs?shcema=jobs", "the parameter 'shcema' is unknown; did you mean 'schema'?"),
        ("postgresql://host/jobs?ssl_mode=require", "the parameter 'ssl_mode' is unknown; did you mean 'sslmode'?"),
        ("postgresql://host/jobs?=jobs", "not parameters"),
        ("postgresql://host/jobs?direct=host", "not the URL of a PostgreSQL server"),
        ("postgresql://host/jobs?direct=postgresql%3A%2F%2Fhost%2Fjobs%3Fschema%3Ds", "direct= has a schema="),
        ("postgresql://host/jobs#x", "not the URL of a PostgreSQL server"),
        ("postgresql://host/jobs?default_transaction_read_only=on", "asyncrunner sets 'default_transaction_read_only' itself"),
        ("postgresql://host/jobs?synchronous_commit=off", "give the program's durability"),
    ],
)
def test_a_mistake_is_refused_with_what_to_write(location: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_address(location)
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("postgresql://me:secret@host:5432/jobs?schema=s", "postgresql://me@host:5432/jobs?schema=s"),
        ("postgresql://me:%73ecret%40@host/jobs", "postgresql://me@host/jobs"),
        ("postgresql://:secret@host/jobs", "postgresql://host/jobs"),
        ("postgresql://me%40corp@host/jobs", "postgresql://me%40corp@host/jobs"),
        ("postgresql://host/jobs?user=me&password=secret&sslpassword=secret", "postgresql://host/jobs?user=me"),
        ("postgresql://host/jobs?PassWord=secret", "postgresql://host/jobs"),
        (f"postgresql://host/jobs?direct={DIRECT}", "postgresql://host/jobs?direct=postgresql://me@server:5433/jobs"),
    ],
)
def test_what_is_shown_has_no_password(location: str, text: str) -> None:
    assert shown(location) == text


@pytest.mark.parametrize("password", ["se/cret", "se@cret", "se?cret", "se#cret", "1/secret", "12?secret", "1?a=secret", "1@2/3"])
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(password: str) -> None:
    location = f"postgresql://me:{password}@host:5432/jobs?schema=s"
    assert shown(location) == "postgresql://..."
    with pytest.raises(ConfigurationError, match=r"postgresql://\.\.\..*@ as %40") as raised:
        parse_address(location)
    assert "cret" not in str(raised.value)
