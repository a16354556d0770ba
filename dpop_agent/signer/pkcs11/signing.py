"""C_SignInit and C_Sign as calls of their own (PKCS#11 3.0 section 5.13).

python-pkcs11 makes a signature with its own login in one call, which doesn't tell when C_Login was
accepted. C_Sign may wait for a touch after that. And what it does beside these two calls takes a
fast PKCS#11 token's proofs a tenth of their time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from pkcs11 import exceptions
from pkcs11.exceptions import PKCS11Error

from dpop_agent.signer.pkcs11.module import KeyFunctionNotPermitted, Module

_ERRORS: Mapping[int, type[PKCS11Error]] = {
    0x02: exceptions.HostMemory,
    0x05: exceptions.GeneralError,
    0x06: exceptions.FunctionFailed,
    0x07: exceptions.ArgumentsBad,
    0x20: exceptions.DataInvalid,
    0x21: exceptions.DataLenRange,
    0x30: exceptions.DeviceError,
    0x31: exceptions.DeviceMemory,
    0x32: exceptions.DeviceRemoved,
    0x50: exceptions.FunctionCancelled,
    0x54: exceptions.FunctionNotSupported,
    0x60: exceptions.KeyHandleInvalid,
    0x62: exceptions.KeySizeRange,
    0x63: exceptions.KeyTypeInconsistent,
    0x68: KeyFunctionNotPermitted,
    0x70: exceptions.MechanismInvalid,
    0x71: exceptions.MechanismParamInvalid,
    0x82: exceptions.ObjectHandleInvalid,
    0x90: exceptions.OperationActive,
    0x91: exceptions.OperationNotInitialized,
    0xA3: exceptions.PinExpired,
    0xB0: exceptions.SessionClosed,
    0xB3: exceptions.SessionHandleInvalid,
    0xE0: exceptions.TokenNotPresent,
    0x101: exceptions.UserNotLoggedIn,
    0x200: exceptions.FunctionRejected,
}
"""What these two return (PKCS#11 3.0 section 5.13), by what python-pkcs11 raises for it."""

_MAX_SIGNATURE = 8192


class _SessionInfo(ctypes.Structure):
    """CK_SESSION_INFO."""

    _fields_ = (("numbers", ctypes.c_ulong * 4),)


class _PssParameters(ctypes.Structure):
    """CK_RSA_PKCS_PSS_PARAMS."""

    _fields_ = (
        ("hashAlg", ctypes.c_ulong),
        ("mgf", ctypes.c_ulong),
        ("sLen", ctypes.c_ulong),
    )


class _Mechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = (
        ("mechanism", ctypes.c_ulong),
        ("pParameter", ctypes.c_void_p),
        ("ulParameterLen", ctypes.c_ulong),
    )


class Signing:
    """One signature, step by step, in the session that a private key was found in.

    Args:
        functions: the module's.
        private: python-pkcs11's private key.
    """

    def __init__(self, functions: Any, private: Any) -> None:
        self._functions = functions
        self._session = private.session.handle
        self._key = private.handle

    @classmethod
    def by(cls, module: Module, private: Any) -> Self | None:
        """None where python-pkcs11 alone has that session.

        p11-kit's modules are another instance for each who asks for their functions.
        """
        functions, info = module.functions, _SessionInfo()
        if functions.C_GetSessionInfo(private.session.handle, ctypes.byref(info)):
            return None
        return cls(functions, private)

    @contextmanager
    def begun(
        self, *, mechanism: int, mechanism_param: tuple[int, int, int] | None = None
    ) -> Iterator[None]:
        """C_SignInit, and what has to be done before `signature`; if that fails, the end of it.

        Args:
            mechanism: CKM_*.
            mechanism_param: hash, mask and length of salt, for RSA-PSS.

        Raises:
            PKCS11Error
        """
        wanted = _wanted(mechanism, mechanism_param)
        if code := self._functions.C_SignInit(self._session, ctypes.byref(wanted), self._key):
            raise _error(code)
        try:
            yield
        except BaseException:
            # Before PKCS#11 3.0 nothing ends it for certain; some modules take this.
            size = ctypes.c_ulong(_MAX_SIGNATURE)
            signature = ctypes.create_string_buffer(size.value)
            self._functions.C_SignFinal(self._session, signature, ctypes.byref(size))
            raise

    def prepared(
        self,
        *,
        mechanism: int,
        mechanism_param: tuple[int, int, int] | None = None,
        room: int = _MAX_SIGNATURE,
    ) -> Callable[[bytes], bytes]:
        """What makes signatures of that kind, with room for so many bytes.

        Raises:
            PKCS11Error: when it is called.
        """
        session, key, init = self._session, self._key, self._functions.C_SignInit
        wanted_at, signed = ctypes.byref(_wanted(mechanism, mechanism_param)), self._signer(room)

        def signature(data: bytes) -> bytes:
            if code := init(session, wanted_at, key):
                raise _error(code)
            return signed(data)

        return signature

    def signature(self, data: bytes) -> bytes:
        """C_Sign.

        Raises:
            PKCS11Error
        """
        return self._signer(_MAX_SIGNATURE)(data)

    def _signer(self, room: int) -> Callable[[bytes], bytes]:
        """C_Sign, into a buffer of so many bytes."""
        session, sign = self._session, self._functions.C_Sign
        buffer, size = ctypes.create_string_buffer(room), ctypes.c_ulong()
        size_at, view = ctypes.byref(size), memoryview(buffer)

        def signed(data: bytes) -> bytes:
            size.value = room
            if code := sign(session, data, len(data), buffer, size_at):
                raise _error(code)
            return view[: size.value].tobytes()  # no more than there is, whatever the module says

        return signed


def _wanted(mechanism: int, mechanism_param: tuple[int, int, int] | None) -> _Mechanism:
    wanted = _Mechanism(mechanism)
    if mechanism_param is not None:
        wanted.parameters = _PssParameters(*mechanism_param)  # lives as long as it does
        wanted.pParameter = ctypes.addressof(wanted.parameters)
        wanted.ulParameterLen = ctypes.sizeof(wanted.parameters)
    return wanted


def _error(code: int) -> PKCS11Error:
    error = _ERRORS.get(code)
    return PKCS11Error(f"Unmapped error code {code:#x}") if error is None else error()
