"""A YubiKey's PIV application without the YubiKey, on the wire of vsmartcard's vpcd.

As much of NIST SP 800-73-4 and of Yubico's instructions as `libykcs11` asks for. The card lives in
the process that makes it, and keeps its keys and its PIN tries while it is pulled.
"""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

ATR = bytes.fromhex("3bfd1300008131fe158073c021c057597562694b657940")
PIV = bytes.fromhex("a000000308")
VERSION = bytes([5, 4, 3])
PIN_TRIES = 3
TOUCH_CACHE_S = 15
TOUCH_WAIT_S = 15.0
NEVER = float("inf")
ATTESTATION = 0xF9
ATTESTATION_CERTIFICATE = bytes.fromhex("5fff01")
YUBICO = "1.3.6.1.4.1.41482.3"

# vpcd's control messages, of one byte each
POWER_OFF, POWER_ON, RESET, GET_ATR = 0, 1, 2, 4


class Ins(IntEnum):
    """Instructions: NIST SP 800-73-4 part 2, and Yubico's from 0xF7 on."""

    VERIFY = 0x20
    GENERATE = 0x47
    AUTHENTICATE = 0x87
    SELECT = 0xA4
    GET_RESPONSE = 0xC0
    GET_DATA = 0xCB
    PUT_DATA = 0xDB
    METADATA = 0xF7
    SERIAL = 0xF8
    ATTEST = 0xF9
    VERSION = 0xFD


class Alg(IntEnum):
    """Algorithm identifiers, NIST SP 800-78-4 table 6-2."""

    RSA_2048 = 0x07
    P256 = 0x11
    P384 = 0x14


class PinPolicy(IntEnum):
    """When a key wants the PIN."""

    NEVER = 1
    ONCE = 2
    ALWAYS = 3


class TouchPolicy(IntEnum):
    """When a key wants a touch; `CACHED` for 15 s after one."""

    NEVER = 1
    ALWAYS = 2
    CACHED = 3


class Refused(Exception):
    """A status word other than 9000."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04x}")
        self.status = status


NOT_ALLOWED, BLOCKED, WRONG_DATA = 0x6982, 0x6983, 0x6A80
NOT_FOUND, NO_KEY, NO_INSTRUCTION, TRIES_LEFT = 0x6A82, 0x6A88, 0x6D00, 0x63C0


class Gone(Exception):
    """The card isn't in its reader any more."""


@dataclass
class Key:
    """A slot's key."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(repr=False)
    alg: int
    pin: int
    touch: int

    def public(self) -> bytes:
        """As GENERATE answers it."""
        public = self.private.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            return _tlv(0x81, numbers.n.to_bytes(256, "big")) + _tlv(
                0x82, numbers.e.to_bytes(3, "big")
            )
        return _tlv(0x86, public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    def sign(self, message: bytes) -> bytes:
        """The bare operation: RSA on a padded block, ECDSA on a digest."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            numbers = self.private.private_numbers()
            block = int.from_bytes(message, "big")
            return pow(block, numbers.d, numbers.public_numbers.n).to_bytes(256, "big")
        digest = {32: hashes.SHA256(), 48: hashes.SHA384()}[len(message)]
        return self.private.sign(message, ec.ECDSA(utils.Prehashed(digest)))


class Card:
    """One card.

    Attributes:
        pin, tries, management_key, serial: as on a card.
        keys: by slot (0x9a, …).
        objects: certificates and others, by the tag that names them.
        touch_s: seconds until somebody touches it when a key wants that; or `NEVER`.
        waits_s: seconds that it waits for a touch before it refuses.
        signatures: how many it made.
        sign_s: seconds that each signature takes besides.
        pins: how many PINs came, right or wrong.
    """

    def __init__(self, *, pin: str) -> None:
        self.pin = pin
        self.tries = PIN_TRIES
        self.management_key = secrets.token_bytes(24)
        self.serial = secrets.randbelow(90_000_000) + 10_000_000
        self.keys: dict[int, Key] = {}
        self.objects: dict[bytes, bytes] = {}
        self.touch_s = 0.0
        self.waits_s = TOUCH_WAIT_S
        self.sign_s = 0.0
        self.pins = 0
        self.signatures = 0
        self._touched_at = -float(TOUCH_CACHE_S)
        self._pulled = threading.Event()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._reset()
        self._personalise()

    def forget_keys(self) -> None:
        """As it was when new, but for its PIN, its serial and its attestation key's name."""
        self.tries = PIN_TRIES
        self.management_key = secrets.token_bytes(24)
        self.keys.clear()
        self.objects.clear()
        self.touch_s = self.sign_s = 0.0
        self.waits_s = TOUCH_WAIT_S
        self.pins = self.signatures = 0
        self._touched_at = -float(TOUCH_CACHE_S)
        self._personalise()

    # In and out of the reader

    def plug(self, port: int) -> None:
        """Put it into the reader that listens on that port of 127.0.0.1.

        Raises:
            ConnectionError: there is no reader.
        """
        assert self._thread is None
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pulled.clear()
        self._reset()
        self._thread = threading.Thread(target=self._serve, args=(self._socket,))
        self._thread.start()

    def pull(self) -> None:
        """Take it out, in the middle of whatever it does."""
        if self._socket is None or self._thread is None:
            return
        self._pulled.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the reader went first
        self._thread.join()
        self._socket.close()
        self._socket = self._thread = None

    @property
    def plugged(self) -> bool:
        """Whether it is in a reader."""
        return self._socket is not None

    def make_key(
        self, slot: int, *, pin: int = PinPolicy.ONCE, touch: int = TouchPolicy.NEVER
    ) -> None:
        """A key as its owner makes it with Yubico's tool, without a certificate."""
        self.keys[slot] = _new_key(Alg.P256, pin=pin, touch=touch)

    def certify(self, slot: int, tag: str) -> None:
        """Its own certificate for a key, in the object that a slot's certificate belongs in."""
        certificate = self._certificate("own", "own", self.keys[slot], serial=1, extensions={})
        self.objects[bytes.fromhex(tag)] = _certificate_object(certificate)

    def _serve(self, reader: socket.socket) -> None:
        try:
            while True:
                (size,) = struct.unpack(">H", _receive(reader, 2))
                message = _receive(reader, size)
                if size > 1:
                    answer = self._apdu(message)
                elif message[0] == GET_ATR:
                    answer = ATR
                else:
                    self._reset()  # POWER_OFF, POWER_ON, RESET have no answer
                    continue
                reader.sendall(struct.pack(">H", len(answer)) + answer)
        except (Gone, OSError):
            pass

    def _wait(self, seconds: float) -> None:
        if seconds and self._pulled.wait(seconds):
            raise Gone

    # The application

    def _reset(self) -> None:
        self._verified = self._fresh = self._managed = False
        self._challenge: bytes | None = None
        self._chained = self._rest = b""

    def _apdu(self, apdu: bytes) -> bytes:
        """Command chaining and GET RESPONSE of ISO 7816-4 around `_do`."""
        cla, number, p1, p2 = apdu[:4]
        data = apdu[5 : 5 + apdu[4]] if len(apdu) > 5 else b""
        if cla & 0x10:
            self._chained += data
            return b"\x90\x00"
        data, self._chained = self._chained + data, b""
        if number == Ins.GET_RESPONSE:
            answer = self._rest
        else:
            try:
                answer = self._do(number, p1, p2, data)
            except Refused as e:
                return e.status.to_bytes(2, "big")
        answer, self._rest = answer[:255], answer[255:]
        return answer + (bytes([0x61, min(len(self._rest), 255)]) if self._rest else b"\x90\x00")

    def _do(self, number: int, p1: int, p2: int, data: bytes) -> bytes:
        instructions: dict[int, Callable[[], bytes]] = {
            Ins.SELECT: lambda: self._select(data),
            Ins.VERSION: lambda: VERSION,
            Ins.SERIAL: lambda: self.serial.to_bytes(4, "big"),
            Ins.VERIFY: lambda: self._verify(p1, data),
            Ins.GET_DATA: lambda: self._get_data(data),
            Ins.PUT_DATA: lambda: self._put_data(data),
            Ins.GENERATE: lambda: self._generate(p2, data),
            Ins.METADATA: lambda: self._metadata(p2),
            Ins.ATTEST: lambda: self._attest(p1),
            Ins.AUTHENTICATE: lambda: self._authenticate(p1, p2, data),
        }
        if number not in instructions:
            raise Refused(NO_INSTRUCTION)
        return instructions[number]()

    def _select(self, aid: bytes) -> bytes:
        if aid[:5] != PIV:
            raise Refused(NOT_FOUND)
        self._reset()
        return _tlv(0x61, _tlv(0x4F, bytes.fromhex("000010000100")) + _tlv(0x79, _tlv(0x4F, PIV)))

    def _verify(self, p1: int, pin: bytes) -> bytes:
        if p1 == 0xFF:
            self._verified = self._fresh = False
            return b""
        if not pin and self._verified:
            return b""
        self.pins += bool(pin)
        if self.tries == 0:
            raise Refused(BLOCKED)
        if not pin:
            raise Refused(TRIES_LEFT | self.tries)
        if pin.rstrip(b"\xff") == self.pin.encode():
            self.tries = PIN_TRIES
            self._verified = self._fresh = True
            return b""
        self.tries -= 1
        self._verified = False
        raise Refused(TRIES_LEFT | self.tries if self.tries else BLOCKED)

    def _get_data(self, data: bytes) -> bytes:
        tag = _parse(data).get(0x5C, b"")
        if tag not in self.objects:
            raise Refused(NOT_FOUND)
        return _tlv(0x53, self.objects[tag])

    def _put_data(self, data: bytes) -> bytes:
        self._need_management()
        found = _parse(data)
        if found[0x53]:
            self.objects[found[0x5C]] = found[0x53]
        else:
            self.objects.pop(found[0x5C], None)
        return b""

    def _generate(self, slot: int, data: bytes) -> bytes:
        self._need_management()
        wanted = _parse(_parse(data)[0xAC])
        by_default = {0x9C: PinPolicy.ALWAYS, 0x9E: PinPolicy.NEVER}.get(slot, PinPolicy.ONCE)
        key = self.keys[slot] = _new_key(
            wanted[0x80][0],
            pin=wanted.get(0xAA, b"\0")[0] or by_default,
            touch=wanted.get(0xAB, b"\0")[0] or TouchPolicy.NEVER,
        )
        return _tlv(0x7F49, key.public())

    def _metadata(self, slot: int) -> bytes:
        key = self._key(slot, NO_KEY)
        generated = 1
        return (
            _tlv(1, bytes([key.alg]))
            + _tlv(2, bytes([key.pin, key.touch]))
            + _tlv(3, bytes([generated]))
            + _tlv(4, key.public())
        )

    def _attest(self, slot: int) -> bytes:
        if slot == ATTESTATION:
            raise Refused(WRONG_DATA)
        key = self._key(slot, WRONG_DATA)
        return self._certificate(
            f"YubiKey PIV Attestation {slot:02x}",
            "Yubico PIV Attestation",
            key,
            serial=slot,
            extensions={
                "3": VERSION,
                "7": b"\x02\x04" + self.serial.to_bytes(4, "big"),
                "8": bytes([key.pin, key.touch]),
            },
        )

    def _authenticate(self, alg: int, slot: int, data: bytes) -> bytes:
        """GENERAL AUTHENTICATE: of the one who manages the card, or a signature."""
        request = _parse(_parse(data)[0x7C])
        if slot == 0x9B:
            return self._manage(request)
        key = self._key(slot, WRONG_DATA)
        if key.alg != alg:
            raise Refused(WRONG_DATA)
        if (key.pin == PinPolicy.ONCE and not self._verified) or (
            key.pin == PinPolicy.ALWAYS and not self._fresh
        ):
            raise Refused(NOT_ALLOWED)
        self._fresh = False
        cached = time.monotonic() - self._touched_at < TOUCH_CACHE_S
        if key.touch == TouchPolicy.ALWAYS or (key.touch == TouchPolicy.CACHED and not cached):
            self._wait(min(self.touch_s, self.waits_s))
            if self.touch_s > self.waits_s:
                raise Refused(NOT_ALLOWED)
            self._touched_at = time.monotonic()
        self._wait(self.sign_s)
        self.signatures += 1
        return _tlv(0x7C, _tlv(0x82, key.sign(request[0x81])))

    def _manage(self, request: dict[int, bytes]) -> bytes:
        """Mutual authentication with the management key: each side encrypts the other's bytes."""
        if request.get(0x80) == b"":
            self._challenge = os.urandom(8)
            return _tlv(0x7C, _tlv(0x80, self._management_cipher().update(self._challenge)))
        challenge, self._challenge = self._challenge, None
        if challenge is None or request.get(0x80) != challenge:
            raise Refused(NOT_ALLOWED)
        self._managed = True
        return _tlv(0x7C, _tlv(0x82, self._management_cipher().update(request[0x81])))

    def _management_cipher(self) -> CipherContext:
        return Cipher(TripleDES(self.management_key), modes.ECB()).encryptor()

    def _need_management(self) -> None:
        if not self._managed:
            raise Refused(NOT_ALLOWED)

    def _key(self, slot: int, otherwise: int) -> Key:
        if slot not in self.keys:
            raise Refused(otherwise)
        return self.keys[slot]

    def _personalise(self) -> None:
        """The attestation key and its certificate, as the factory puts them in."""
        key = self.keys[ATTESTATION] = _new_key(
            Alg.P256, pin=PinPolicy.NEVER, touch=TouchPolicy.NEVER
        )
        # Signed by itself, where a real one's chain goes on to Yubico's root.
        certificate = self._certificate(
            "Yubico PIV Attestation", "Yubico PIV Attestation", key, serial=1, extensions={}
        )
        self.objects[ATTESTATION_CERTIFICATE] = _certificate_object(certificate)

    def _certificate(
        self, subject: str, issuer: str, key: Key, *, serial: int, extensions: dict[str, bytes]
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.private.public_key())
            .serial_number(serial)
            .not_valid_before(datetime.datetime(2016, 3, 14))
            .not_valid_after(datetime.datetime(2052, 4, 17))
        )
        for number, value in extensions.items():
            oid = x509.ObjectIdentifier(f"{YUBICO}.{number}")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
        signed = builder.sign(self.keys[ATTESTATION].private, hashes.SHA256())
        return signed.public_bytes(Encoding.DER)


def _certificate_object(certificate: bytes) -> bytes:
    return _tlv(0x70, certificate) + _tlv(0x71, b"\0") + _tlv(0xFE, b"")


def _new_key(alg: int, *, pin: int, touch: int) -> Key:
    if alg == Alg.P256:
        return Key(ec.generate_private_key(ec.SECP256R1()), alg, pin, touch)
    if alg == Alg.P384:
        return Key(ec.generate_private_key(ec.SECP384R1()), alg, pin, touch)
    if alg == Alg.RSA_2048:
        return Key(rsa.generate_private_key(65537, 2048), alg, pin, touch)
    raise Refused(WRONG_DATA)


def _receive(reader: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        # vpcd writes length and content apart; a delayed acknowledgement would cost 40 ms each time
        reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        more = reader.recv(size - len(data))
        if not more:
            raise Gone
        data += more
    return data


def _tlv(tag: int, value: bytes) -> bytes:
    """BER-TLV with a definite length (ISO 7816-4 section 5.2.2)."""
    size = len(value)
    if size < 0x80:
        length = bytes([size])
    elif size < 0x100:
        length = bytes([0x81, size])
    else:
        length = b"\x82" + size.to_bytes(2, "big")
    return tag.to_bytes(1 if tag < 0x100 else 2, "big") + length + value


def _parse(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at < len(data):
        tag = data[at]
        at += 1
        if tag in (0x7F, 0x5F):
            tag = tag << 8 | data[at]
            at += 1
        length = data[at]
        at += 1
        if length & 0x80:
            octets = length & 0x7F
            length = int.from_bytes(data[at : at + octets], "big")
            at += octets
        found[tag] = data[at : at + length]
        at += length
    return found
