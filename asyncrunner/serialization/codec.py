"""Encode payloads and results as JSON text, and decode the text to typed values.

Decoding uses no pickle and imports no code that a text names. A value is stored as JSON and decoded to the type of the
handler's annotation, so a type that JSON lacks (a dataclass, a date, a Path) keeps its value exactly if it is
annotated. Without an annotation only plain JSON values are accepted as items, because any other value would silently come
back as another type. A result without an annotation comes back as its plain JSON form.
"""

from __future__ import annotations

import math
import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, get_origin

import msgspec

from asyncrunner.domain.options import NanPolicy
from asyncrunner.domain.outcome import LARGE_RESULT
from asyncrunner.errors import ConfigurationError, ItemNotStorable, PayloadUnreadable, ResultNotStorable, StoreError
from asyncrunner.serialization.descriptions import describe_item, name_of, shown, shown_at_length, type_name
from asyncrunner.serialization.equality import NotSameError, check_names, check_nothing_hidden, check_same
from asyncrunner.serialization.exactness import ResultExactness, exact_type
from asyncrunner.serialization.foreign import from_library, is_missing, to_model, without_foreign
from asyncrunner.serialization.signature import signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES: Final = 64 * 1024 * 1024
"""The largest payload or result, as JSON, in bytes."""

T = TypeVar("T")
_PLAIN_ANNOTATIONS: Final[tuple[object, ...]] = (Any, object, dict, list, tuple, dict[str, Any], list[Any])
_PLAIN_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_CONTAINERS: Final = (dict, list, tuple)  # a union of them takes isinstance() 0.15 us longer
_NAN_ADVICE: Final = 'has no JSON form; the option nan="null" (--nan null) stores NaN and infinity as null'
_ENCODE_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError, AttributeError)


class NotPlainError(TypeError):
    """The error for a value that would come back from JSON as another type; its message names the part of the value."""


class Codec(Generic[T]):
    """An encoder and decoder between the values of one annotation and JSON text.

    ``Codec(annotation)`` raises ConfigurationError for an annotation that has no JSON form. ``owner`` is the name of
    the handler in error messages. ``nan``: see ``HandlerOptions``.
    """

    def __init__(self, annotation: object = Any, *, owner: str = "the handler", nan: NanPolicy = "refuse") -> None:
        self.annotation = annotation
        self.owner = owner
        self._plain = any(annotation == plain for plain in _PLAIN_ANNOTATIONS)
        self._check = (
            _check_plain
            if any(annotation == each for each in (Any, object))
            else _check_plain_in(get_origin(annotation) or annotation)
        )
        self._exact = exact_type(annotation)
        exactness = ResultExactness(annotation)
        self._nan_as_null = nan == "null"
        encoders = _encoders[nan]
        self._encode_item = encoders.item if self._plain else encoders.ordered
        self._encode_result = encoders.result if exactness.is_possible else encoders.item
        self._exact_results = None if exactness.is_total else exactness
        try:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_decodable(annotation), dec_hook=_from_builtins)
        except (TypeError, ValueError, NameError) as error:
            raise ConfigurationError(
                f"{owner}: the annotation {name_of(annotation)} has no JSON form ({error}); annotate the item with a "
                "dataclass, TypedDict, msgspec.Struct, pydantic model or plain types"
            ) from error

    def encode_item(self, item: object) -> str:
        """Return the payload of *item* as JSON text. Raises ItemNotStorable, naming the item, its type and a remedy.

        The payload decodes to a value that equals *item*; an item that would lose something is refused.
        """
        try:
            if self._plain:
                text = self._encode_plain(item)
            else:
                text = _to_json(item, self._encode_item, self._nan_as_null)
                back = self._decoder.decode(text)
                if type(item) is not self._exact:
                    check_same(item, back, nan_as_null=self._nan_as_null)
        except NotPlainError as error:
            converted = without_foreign(item, nan_as_null=self._nan_as_null)
            if converted is not item:
                return self.encode_item(converted)
            raise ItemNotStorable(f"{describe_item(item)} would come back to {self.owner} as another type: {error}") from error
        except NotSameError as error:
            raise ItemNotStorable(
                f"{describe_item(item)} would come back to {self.owner} as another value: {error}. Annotate each part with its "
                "type, or leave it out"
            ) from error
        except msgspec.ValidationError as error:
            raise ItemNotStorable(
                f"{describe_item(item)} does not fit {self.owner}, which takes {name_of(self.annotation)}: {error}"
            ) from error
        except _ENCODE_ERRORS as error:
            converted = without_foreign(item, nan_as_null=self._nan_as_null)
            if converted is not item:
                return self.encode_item(converted)
            if hasattr(error, "__notes__"):
                raise ItemNotStorable(f"{describe_item(item)} cannot be stored as JSON: {error.__notes__[0]}") from error
            raise ItemNotStorable(
                f"{describe_item(item)} cannot be stored as JSON: {error}. Give plain values, a dataclass, TypedDict, "
                "attrs class, msgspec.Struct or pydantic model, or pass a path or an id and load the data in the handler"
            ) from error
        return text

    def _encode_plain(self, item: object) -> str:
        data = self._encode_item(item)
        if b"null" in data or len(data) > MAX_BYTES:
            _check(data, item, self._nan_as_null)
        self._check(item)  # all names are str, so no two of them become one
        return data.decode()

    def encode_result(self, result: object) -> str:
        """Return *result* as JSON text. Raises ResultNotStorable, naming its type."""
        text = self.begin_result(result)
        if isinstance(text, str):
            return text
        self.check_result(text, result)
        return text.decode()

    # Stored fingerprints of ResultNotStorable and PayloadUnreadable contain the line of the error in the next three functions.
    # So each docstring is one line. For bytes, the caller of begin_result() calls check_result() and bytes.decode() as separate
    # steps, so that each step blocks the event loop for less time.

    def begin_result(self, result: object) -> str | bytes:
        """Return the JSON text of *result*, or its bytes if they are more than LARGE_RESULT. Raises ResultNotStorable."""
        if result is None:
            return "null"
        try:
            data = self._encode_result(result)
        except _ENCODE_ERRORS as error:
            raise _not_storable(result, error) from error
        if len(data) > LARGE_RESULT:
            return data
        self.check_result(data, result)
        return data.decode()

    def check_result(self, data: bytes, result: object) -> None:
        """Raise ResultNotStorable if the encoded *data* of *result* has NaN or infinity, or is more than ``MAX_BYTES``."""
        try:
            _check(data, result, self._nan_as_null)
        except _ENCODE_ERRORS as error:
            raise _not_storable(result, error) from error
        if self._exact_results is not None and not self._exact_results.covers(result):
            self._check_back(data, result)

    def _check_back(self, data: bytes, result: object) -> None:
        """Raise ResultNotStorable if *data* does not come back equal to *result*; an un-annotated part is plain JSON."""
        try:
            try:
                back: object = self._decoder.decode(data)
            except (msgspec.DecodeError, ValueError, TypeError):
                check_same(result, msgspec.json.decode(data), nan_as_null=self._nan_as_null)  # as decode_result() does
            else:
                check_same(result, back, plain=True, nan_as_null=self._nan_as_null)
        except _ENCODE_ERRORS as error:
            raise _not_storable(result, error) from error

    def decode(self, text: str, key: str = "") -> T:
        """Decode the payload *text* of the item *key* to a typed value. Raises PayloadUnreadable if it does not fit."""
        try:
            return cast("T", self._decoder.decode(text))
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            raise PayloadUnreadable(self._unreadable(error, key)) from error

    def _unreadable(self, error: Exception, key: str) -> str:
        if isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
            return (
                f"the stored payload of item {key!r} is not JSON ({error}), so another program has written it: store JSON in the "
                "column payload of its row in items, where a text needs double quotes, then run `asyncrunner retry` with its id"
            )
        return (
            f"the stored payload does not fit {name_of(self.annotation)} ({error}); was the annotation of "
            f"{self.owner} changed since it was stored?"
        )

    def from_json(self, text: str) -> T:
        """Build an item from a JSON text of the input. Raises PayloadUnreadable if it does not fit the annotation."""
        try:
            return cast("T", self._decoder.decode(text))
        except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
            raise self._does_not_fit(error) from error

    def from_strings(self, value: str | dict[str, str] | dict[str, str | None]) -> T:
        """Build an item from a line of text or from a row (column name -> text, or None).

        Numbers and dates are parsed from text. Raises PayloadUnreadable if the item does not fit the annotation.
        """
        if self._plain or self.annotation is str:
            return cast("T", value)
        try:
            return cast("T", msgspec.convert(value, _decodable(self.annotation), strict=False, dec_hook=_from_builtins))
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            if isinstance(value, str):
                try:
                    return cast("T", self._decoder.decode(value))  # a line may also be JSON
                except (msgspec.DecodeError, ValueError, TypeError):
                    pass
            raise self._does_not_fit(error) from error

    def _does_not_fit(self, error: Exception) -> PayloadUnreadable:
        if isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
            return PayloadUnreadable(f"not JSON ({error})")
        return PayloadUnreadable(f"the item does not fit {self.owner}, which takes {name_of(self.annotation)}: {error}")

    def decode_result(self, text: str) -> T:
        """Decode a stored text to the annotation, or to plain values if the text does not fit the annotation.

        Raises StoreError for a text that is not JSON: any program can write the rows.
        """
        try:
            return cast("T", self._decoder.decode(text))
        except (msgspec.DecodeError, ValueError, TypeError):
            pass
        try:
            return cast("T", msgspec.json.decode(text))
        except (msgspec.DecodeError, UnicodeError) as error:
            what = f"is not JSON ({error}), so another program changed it"
            what = what if text else "is empty, so its rows in result_pieces were deleted"
            raise StoreError(
                f"a stored value of {self.owner} {what}; find the item with `asyncrunner export`, delete its row in items, and "
                "add the item again"
            ) from error


def codecs_of(
    handler: Callable[..., object], *, has_setup: bool = False, nan: NanPolicy = "refuse"
) -> tuple[Codec[Any], Codec[Any]]:
    """Return the codecs of *handler*'s items and results; *nan*: see ``HandlerOptions``.

    Raises ConfigurationError, see ``signature_of``.
    """
    item, result = signature_of(handler, has_setup=has_setup)
    owner = getattr(handler, "__qualname__", None) or name_of(handler)
    try:
        results: Codec[Any] = Codec(Any if result is None else result, owner=owner, nan=nan)
    except ConfigurationError:
        results = Codec(owner=owner, nan=nan)  # a result is encoded by its type; the annotation is used only to decode it
    return Codec(item, owner=owner, nan=nan), results


def _to_builtins(value: object) -> object:
    if isinstance(value, PurePath):
        return os.fspath(value)
    converted = from_library(value)  # the next lines keep their position: the line of the error is in stored fingerprints
    if converted is not value:
        return converted
    raise _without_form(value)


def _without_form(value: object) -> NotImplementedError:
    error = NotImplementedError(f"{type_name(value)} has no JSON form")
    if is_missing(value):
        error.add_note(f"{type_name(value)} {shown(value)} {_NAN_ADVICE}")
    return error


def _to_builtins_or_null(value: object) -> object:
    return None if is_missing(value) else _to_builtins(value)


def _from_builtins(kind: Any, value: object) -> object:
    if kind is object:
        return value
    try:
        if isinstance(kind, type) and issubclass(kind, PurePath):
            return kind(cast("str", value))
        if hasattr(cast("object", kind), "model_validate"):
            return to_model(kind, value)
    except ValueError as error:
        raise msgspec.ValidationError(str(error)) from error
    raise msgspec.ValidationError(f"{name_of(cast('object', kind))} is not a type that asyncrunner can build from JSON")


class _Encoders:
    """The encoders of one treatment of NaN: of items, of items that may contain sets, and of results."""

    def __init__(self, nan: NanPolicy) -> None:
        self._to_builtins = _to_builtins if nan == "refuse" else _to_builtins_or_null
        self._nan_as_null = nan == "null"
        self.item: Callable[[object], bytes] = msgspec.json.Encoder(enc_hook=self._to_builtins).encode
        self.result: Callable[[object], bytes] = msgspec.json.Encoder(enc_hook=self._result_to_builtins).encode
        self._ordered = msgspec.json.Encoder(enc_hook=self._to_builtins, order="deterministic").encode

    def ordered(self, value: object) -> bytes:
        # A set has another order in every process. Without a fixed order, the item's payload and key would differ.
        try:
            return self._ordered(value)
        except TypeError:  # this encoder orders only names that are str
            return self.item(msgspec.to_builtins(value, enc_hook=self._to_builtins, order="deterministic", str_keys=True))

    def _result_to_builtins(self, value: object) -> object:
        form = self._to_builtins(value)
        if hasattr(cast("Any", type(value)), "model_fields"):
            check_nothing_hidden(value, form, nan_as_null=self._nan_as_null)
        return form


_encoders: Final[dict[NanPolicy, _Encoders]] = {"refuse": _Encoders("refuse"), "null": _Encoders("null")}


def _to_json(value: object, encode: Callable[[object], bytes], nan_as_null: bool) -> str:
    data = encode(value)
    _check(data, value, nan_as_null)
    return data.decode()


def _check(data: bytes, value: object, nan_as_null: bool) -> None:
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data):,} bytes of JSON, more than the limit of {MAX_BYTES:,}")
    if b"null" in data and not nan_as_null and (found := _non_finite_part(msgspec.to_builtins(value, enc_hook=_to_builtins))):
        raise _non_finite(found)
    if isinstance(value, _CONTAINERS):
        check_names(data)


def _not_storable(result: object, error: Exception) -> ResultNotStorable:
    not_storable = ResultNotStorable(
        f"the handler returned {type_name(result)}, which cannot be stored as JSON: {_message_of(error)}. "
        "Return plain values, a dataclass, a model, or None and write the rest elsewhere"
    )
    # A note is in the stored traceback, but not in the message, from which the fingerprint is made.
    not_storable.add_note(f"The result was: {shown_at_length(result)}")
    return not_storable


def _non_finite_part(value: object, place: str = "") -> str | None:
    # msgspec writes NaN and infinity as null, so this function is called only for JSON that contains a null.
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place or 'the value'}, float {value},"
    if isinstance(value, dict):
        parts = [(f"{place}[{name!r}]", part) for name, part in cast("dict[object, object]", value).items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(cast("list[object]", value))]
    else:
        return None
    return next((found for name, part in parts if (found := _non_finite_part(part, name))), None)


def _non_finite(part: str) -> ValueError:
    error = ValueError("NaN and infinity have no JSON form")  # the fingerprint of a failure contains this text
    error.add_note(f"{part} {_NAN_ADVICE}")
    return error


def _check_plain(value: object) -> None:
    kind = type(value)
    if kind in _PLAIN_SCALARS:
        return
    if kind is list:
        for part in cast("list[object]", value):
            if type(part) not in _PLAIN_SCALARS:
                _check_plain(part)
        return
    if kind is dict:
        for name, part in cast("dict[object, object]", value).items():
            if type(name) is not str:
                raise NotPlainError(f"its dict key {shown(name)} is not a str; annotate the handler's parameter")
            if type(part) not in _PLAIN_SCALARS:
                _check_plain(part)
        return
    raise NotPlainError(
        f"{type_name(value)} is not plain JSON; annotate the handler's parameter, as in `async def work(item: {kind.__name__})`"
    )


def _check_plain_in(container: Any) -> Callable[[object], None]:
    """Return the check for the annotation dict, list or tuple, whose parts are plain."""

    def check(value: object) -> None:
        if type(value) is not container:
            raise NotPlainError(f"{type_name(value)} is not {name_of(container)}, which the handler takes")
        _check_plain(list(cast("tuple[object]", value)) if type(value) is tuple else value)

    return check


def _decodable(annotation: object) -> Any:
    if annotation is object:
        return Any
    if isinstance(annotation, TypeVar):
        return Any
    return annotation


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__
        return type(error).__name__
