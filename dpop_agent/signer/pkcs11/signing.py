"""C_SignInit and C_Sign as calls of their own (PKCS#11 3.0 section 5.13).

python-pkcs11 makes a signature with its own login in one call, which doesn't tell when C_Login was
accepted. C_Sign may wait for a touch after that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from pkcs11.exceptions import (
    KeySizeRange,
    KeyTypeInconsistent,
    MechanismInvalid,
    MechanismParamInvalid,
    PKCS11Error,
    UserNotLoggedIn,
)

from dpop_agent.signer.pkcs11.module import KeyFunctionNotPermitted, Module

_ERRORS = {
    0x62: KeySizeRange,
    0x63: KeyTypeInconsistent,
    0x68: KeyFunctionNotPermitted,
    0x70: MechanismInvalid,
    0x71: MechanismParamInvalid,
    0x101: UserNotLoggedIn,
}
"""CKR_* that somebody tells from others (PKCS#11 3.0 appendix B)."""

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
        wanted = _Mechanism(mechanism)
        if mechanism_param is not None:
            parameters = _PssParameters(*mechanism_param)
            wanted.pParameter = ctypes.addressof(parameters)
            wanted.ulParameterLen = ctypes.sizeof(parameters)
        code = self._functions.C_SignInit(self._session, ctypes.byref(wanted), self._key)
        _require_ok("C_SignInit", code)
        try:
            yield
        except BaseException:
            # Before PKCS#11 3.0 nothing ends it for certain; some modules take this.
            size = ctypes.c_ulong(_MAX_SIGNATURE)
            signature = ctypes.create_string_buffer(size.value)
            self._functions.C_SignFinal(self._session, signature, ctypes.byref(size))
            raise

    def signature(self, data: bytes, *, size: int = _MAX_SIGNATURE) -> bytes:
        """C_Sign, with room for so many bytes.

        Raises:
            PKCS11Error
        """
        room = ctypes.c_ulong(size)
        signature = ctypes.create_string_buffer(size)
        code = self._functions.C_Sign(self._session, data, len(data), signature, ctypes.byref(room))
        _require_ok("C_Sign", code)
        return signature.raw[: room.value]


def _require_ok(name: str, code: int) -> None:
    if code in _ERRORS:
        raise _ERRORS[code]
    if code:
        raise PKCS11Error(f"{name}: {code:#x}")
