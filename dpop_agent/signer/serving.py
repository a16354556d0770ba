"""Frames in, what the store does, frames out: all that a signer process does.

The process that comes here is closed to debuggers already. It loads the vendor's module and has the
PIN; nothing of both existed when somebody could have opened it.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, NoReturn

from dpop_agent import __version__
from dpop_agent.channel import Frames, Malformed, Signed, frame, parse_asked, sign_frame
from dpop_agent.errors import (
    AttestationUnavailable,
    DPoPAgentError,
    InvalidParams,
    Locked,
    SignerFailed,
)
from dpop_agent.signer import heritage
from dpop_agent.signer.authority import Authority
from dpop_agent.signer.heritage import Accepted
from dpop_agent.signer.lock import one_at_a_time, take_lock
from dpop_agent.signer.pin import NoPin, PinCredential, PinFile, PinKeychain, PinPrompt, UserPin
from dpop_agent.signer.store import (
    STALE,
    Attests,
    ListsKeys,
    PinStore,
    PreparesSignatures,
    SharedStore,
    Slot,
    SlotStore,
    Store,
    TellsHalfMade,
)

LOCK_WAIT_S = 8.0
"""Seconds to wait for an earlier signer of the same store; more than its grace."""

HELD_S = 0.002
"""Seconds after which an answer waits for no other signature to be begun; for an operation none
does. One write and one wake do for those that wait."""

APART_S = 5.0
"""Seconds that one of a store's signers waits at the most for another to have opened the store."""


def _make_store(settings: dict[str, Any], user_pin: UserPin | None, lock: str) -> Store:
    if settings["type"] == "keychain":
        from dpop_agent.signer.keychain.store import KeychainStore

        return KeychainStore(backend=settings["backend"])
    assert user_pin is not None  # a PKCS#11 store's configuration has a source of PINs
    from dpop_agent.config import parse_token_uri
    from dpop_agent.signer.brake import Brake
    from dpop_agent.signer.pkcs11 import discovery, vendors
    from dpop_agent.signer.pkcs11.module import Module
    from dpop_agent.signer.pkcs11.slots import CardStore
    from dpop_agent.signer.pkcs11.store import Pkcs11Store
    from dpop_agent.signer.pkcs11.token import Token

    module = Module(settings["module"], settings["module_args"])
    brake = Brake(
        os.path.dirname(lock),
        store=settings["name"],
        retries=settings["login_retries"],
        before=f"{lock}.refused",
    )
    token = Token(module=module, uri=parse_token_uri(settings["uri"]), pin=user_pin, brake=brake)
    slots = vendors.slots(*discovery.manufacturers(module, token.uri))
    if slots is not None:
        return CardStore(token, slots)
    checks_each = settings["verify"] == "always"
    return Pkcs11Store(token, checks_each=checks_each, shared=settings["signers"] > 1)


def _user_pin(settings: dict[str, Any]) -> UserPin | None:
    kind, argument, store = settings["pin_kind"], settings["pin_argument"], settings["name"]
    if kind is None:
        return None
    if kind == "prompt":
        return PinPrompt(store)
    if kind == "none":
        return NoPin(store)
    if kind == "keychain":
        return PinKeychain(store, settings["uri"])
    return (PinCredential if kind == "credential" else PinFile)(store, argument)


def _lock(path: str) -> int:
    """Hold the store's lock: a signer whose agent was killed may still finish what it did."""
    descriptor = _lock_file(path)
    if not take_lock(descriptor, within_s=LOCK_WAIT_S):
        raise SignerFailed(
            "another signer of this store is still running", hint="stop the other agent first"
        )
    return descriptor


def _lock_file(path: str) -> int:
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except OSError as e:
        raise SignerFailed(
            f"the store's lock {path} can't be opened ({e.strerror})",
            hint="make its folder writable, or set DPOP_AGENT_STATE_DIR to another",
        ) from e


def _place(error: BaseException) -> str:
    """File and line, without the values that a traceback's text may carry."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _require_shareable(store: Store, settings: dict[str, Any]) -> None:
    """Let pass a store that so many processes can host.

    Raises:
        SignerFailed
    """
    if settings["signers"] == 1:
        return
    if not isinstance(store, SharedStore):
        why = "is on a card, which makes one signature after the other"
    elif store.has_pad():
        why = "takes its PIN at its own pad, once for each signer"
    else:
        return
    raise SignerFailed(
        f"the store {settings['name']} {why}: it can't have {settings['signers']} signers",
        hint="leave signers out of its configuration, then: dpop-agent reload",
        retry="no",
    )


class _Signer:
    def __init__(self, line: socket.socket | None) -> None:
        self._line = line
        self._store: Store | None = None
        self._is_open = False
        self._authority: Authority | None = None
        self._pin: UserPin | None = None
        self._lock_descriptor = -1
        self._released = False
        self._opening_lock: int | None = None
        # By the key that is asked for.
        self._prepared: dict[bytes, Callable[[bytes], bytes | None]] = {}

    def answer(self, request: dict[str, Any] | Signed) -> bytes:
        """The frame that answers one; `broken` says afterwards whether it is the last."""
        try:
            if isinstance(request, tuple):
                number, content = request
                asked, _, signing_input = content.partition(b"\n")
                prepared = self._prepared.get(asked)
                signature = None if prepared is None else prepared(signing_input)
                if signature is None:
                    signature = self._sign(asked, signing_input)
                return sign_frame(number, signature)
            self._prepared.clear()
            return frame(id=request["id"], ok=self._do(request))
        except Exception as e:
            self._prepared.clear()
            number = request[0] if isinstance(request, tuple) else request["id"]
            if isinstance(e, DPoPAgentError):
                return frame(id=number, error=e.to_wire(), broken=self.broken)
            if self._store is not None:
                self._store.broken = True
            error = SignerFailed(f"unexpected {type(e).__name__} in the signer{_place(e)}")
            return frame(id=number, error=error.to_wire(), broken=True)

    @property
    def broken(self) -> bool:
        return self._store is None or self._store.broken

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "authorize":
            self._opened()
            return {"path": self._authority and self._authority.listen(request["folder"])}
        if op == "listen":
            return self._listen(self._made(request), request["folder"])
        if op == "open":
            store = self._made(request)
            if self._pin is not None:
                self._pin.attended = request["attended"]
            return self._open(store) | {"pid": os.getpid()}
        if op == "tell":
            self._tell(None)
            return {}
        store = self._opened()
        if op == "hand_on":
            if isinstance(store, SharedStore) and self._line is not None:
                heritage.hand_on(self._line, store.accepted, self._lock_descriptor)
            return {}
        if op == "look_anew":
            if isinstance(store, SharedStore):
                store.look_anew_next_time()
            return {}
        if op == "self_test":
            return {"outcome": STALE if self._released else self._self_test(store, request)}
        if op == "release":
            if not self._released:  # another program may have it since, and nothing is held here
                store.release()
            self._released = True
            return {}
        self._take_again(store)
        operations: dict[str, Callable[[], dict[str, Any]]] = {
            "reserve": lambda: self._reserve(store, request),
            "generate": lambda: self._generate(store, request),
            "find": lambda: self._find(store, request),
            "destroy": lambda: self._destroy(store, request),
            "objects": lambda: self._objects(store, request),
            "attestation": lambda: self._attestation(store, request),
        }
        return operations[op]()

    def _sign(self, asked: bytes, signing_input: bytes) -> bytes:
        store = self._opened()
        self._take_again(store)
        key = parse_asked(asked)
        signature = store.sign(*key, signing_input)
        if isinstance(store, PreparesSignatures):
            prepared = store.prepared(*key)
            if prepared is not None:
                self._prepared[asked] = prepared
        return signature

    def _take_again(self, store: Store) -> None:
        """Have a store that was released."""
        if self._released:
            self._open(store)
            self._released = False

    @staticmethod
    def _reserve(store: Store, request: dict[str, Any]) -> dict[str, Any]:
        if isinstance(store, SlotStore):
            wanted = Slot(request["slot"], request["overwrites"], frozenset(request["taken"]))
            ref = store.reserve(request["alg"], wanted)
            return {"ref": ref, "slot": store.slot_name(ref)}
        if request["slot"] is not None:
            raise InvalidParams("the store has no slots", hint="leave slot out")
        return {"ref": store.reserve(request["alg"]), "slot": None}

    @staticmethod
    def _generate(store: Store, request: dict[str, Any]) -> dict[str, Any]:
        what = request["ref"], request["alg"], request["label"]
        if isinstance(store, SlotStore):
            return store.generate(*what, overwrites=request["overwrites"]).to_frame()
        return store.generate(*what).to_frame()

    @staticmethod
    def _objects(store: Store, request: dict[str, Any]) -> dict[str, Any]:
        slots = store.slots if isinstance(store, SlotStore) else None
        if not isinstance(store, ListsKeys):
            return {"objects": None, "more": False, "slots": None}
        objects, more = store.objects(begin=request["begin"], anew=request["anew"])
        return {"objects": objects, "more": more, "slots": slots() if slots and not more else None}

    @staticmethod
    def _attestation(store: Store, request: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(store, Attests):
            raise AttestationUnavailable(
                "the store attests no keys", hint="a YubiKey does, through Yubico's ykcs11"
            )
        return {"certificates": store.attestation(request["ref"], request["jkt"])}

    @property
    def authority(self) -> Authority | None:
        """Where a management key may come in, or go out of date, between two frames."""
        if self._authority is None or self._authority.left_s() is None:
            return None
        return self._authority

    def listen_no_more(self) -> None:
        """Leave no socket behind, and no management key."""
        if self.authority is not None:
            self.authority.forget()
        if isinstance(self._pin, PinPrompt):
            self._pin.listen_no_more()

    def _tell(self, error: DPoPAgentError | None) -> None:
        """The outcome, to whoever typed the PIN."""
        if isinstance(self._pin, PinPrompt):
            self._pin.tell(error)

    @staticmethod
    def _find(store: Store, request: dict[str, Any]) -> dict[str, Any]:
        found = store.find(
            request["ref"], request["alg"], self_test=request["self_test"], anew=request["anew"]
        )
        if found is not None:
            return {"key": found.to_frame(), "half": None}
        half = store.half_made(request["ref"]) if isinstance(store, TellsHalfMade) else None
        return {"key": None, "half": half}

    @staticmethod
    def _self_test(store: Store, request: dict[str, Any]) -> str:
        return store.self_test(request["ref"], request["jkt"], request["alg"])

    @staticmethod
    def _destroy(store: Store, request: dict[str, Any]) -> dict[str, Any]:
        store.destroy(request["ref"], request["jkt"])
        return {}

    def _made(self, request: dict[str, Any]) -> Store:
        """The store, which isn't open yet."""
        if self._store is None:
            if request["version"] != __version__:
                raise SignerFailed(
                    f"the agent runs version {request['version']}, its signers {__version__}",
                    hint="restart the agent",
                )
            accepted = Accepted()
            if request["heir"] and self._line is not None:
                accepted, self._lock_descriptor = heritage.inherit(self._line)
            else:
                self._lock_descriptor = _lock(request["lock"])
            self._pin = _user_pin(request["store"])
            store = _make_store(request["store"], self._pin, request["lock"])
            _require_shareable(store, request["store"])
            if request["store"]["signers"] > 1:
                self._opening_lock = _lock_file(f"{request['lock']}.opening")
            if isinstance(store, SharedStore):
                store.accepted = accepted
            if isinstance(store, SlotStore):
                self._authority = store.authority
            self._store = store
        return self._store

    def _listen(self, store: Store, folder: str) -> dict[str, Any]:
        """Where somebody has to be to type the PIN, before anybody is asked for it."""
        try:
            pad = isinstance(store, PinStore) and store.has_pad()
            path = None
            if isinstance(store, PinStore) and isinstance(self._pin, PinPrompt):
                path = self._pin.listen(folder, pad=pad, anew=store.is_braked())
        except DPoPAgentError:
            store.broken = True
            raise
        return {"path": path, "pad": pad}

    def _open(self, store: Store) -> dict[str, Any]:
        try:
            with self._apart():
                place = store.open()
        except DPoPAgentError as e:
            # A store that was released and wants a PIN now isn't the one that was open.
            store.broken = store.broken or not self._is_open or isinstance(e, Locked)
            self._tell(e)
            raise
        self._is_open = True
        return place

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Apart from the store's other signers, which are all needed again at the same instant.

        SoftHSM2 writes a token's flags into its file at each login: whoever initialises it just
        then sees no token.
        """
        if self._opening_lock is None:
            yield
            return
        with one_at_a_time(self._opening_lock, within_s=APART_S):
            yield

    def _opened(self) -> Store:
        if self._store is None or not self._is_open:
            raise SignerFailed("the store isn't open")
        return self._store


def _answer_frames(channel: socket.socket, signer: _Signer) -> None:
    """Answer frames until the agent closes the channel or the store is broken."""
    frames, sent = Frames(), 0
    while True:
        while (authority := signer.authority) is not None:
            waiting = [channel, *authority.waits_for()]
            readable, _, _ = select.select(waiting, [], [], authority.left_s())
            authority.serve(readable)
            if channel in readable:
                break
        try:
            # Asked in vain, it takes as long as all else here: only where it matters to the size.
            data = channel.recv(65536, socket.MSG_DONTWAIT if sent > 1 else 0)
        except BlockingIOError:
            data, sent = channel.recv(65536), 0
        if not data:
            return
        requests = list(frames.feed(data))
        # Half of what the agent has here at once: it has something to do with the answers to
        # those while the others are signed. What was sent last counts where more was there then.
        size = max(1, (sent + len(requests)) // 2)
        answers: list[bytes] = []
        began = monotonic()
        for request in requests:
            if answers and (
                len(answers) >= size
                or not isinstance(request, tuple)
                or monotonic() - began > HELD_S
            ):
                channel.sendall(b"".join(answers))
                answers, began = [], monotonic()
            answers.append(signer.answer(request))
            if signer.broken:
                break
        channel.sendall(b"".join(answers))
        if signer.broken:
            return
        sent = len(answers)


def serve(channel: socket.socket, line: socket.socket | None = None) -> NoReturn:
    """Serve a store until the agent closes the channel, and end this process.

    `line` is the one to the forking process, over which ends of pairs come for `heritage`.
    """
    signer = _Signer(line)
    try:
        _answer_frames(channel, signer)
    except (ConnectionError, Malformed):
        pass
    signer.listen_no_more()
    # Not through the interpreter's end: a vendor module's destructors may hang or crash there.
    sys.stderr.flush()
    os._exit(0)
