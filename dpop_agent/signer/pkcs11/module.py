"""A vendor's module, from C_Initialize to C_Finalize (PKCS#11 3.0 section 5.4)."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import pkcs11
from pkcs11._pkcs11 import lib
from pkcs11.exceptions import PKCS11Error

from dpop_agent.errors import StoreAbsent

_CKF_OS_LOCKING_OK = 2


class _Arguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS, and what NSS has after it, where it calls pReserved otherwise."""

    _fields_ = (
        ("mutexes", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("pReserved", ctypes.c_char_p),
        ("after", ctypes.c_void_p),
    )


_ulong, _pointer = ctypes.c_ulong, ctypes.c_void_p
_Function = ctypes.CFUNCTYPE(_ulong, _pointer)


class _Functions(ctypes.Structure):
    """The beginning of CK_FUNCTION_LIST."""

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("C_Initialize", _Function),
        ("C_Finalize", _Function),
        ("C_GetInfo to C_CloseAllSessions", _pointer * 13),
        ("C_GetSessionInfo", ctypes.CFUNCTYPE(_ulong, _ulong, _pointer)),
        ("C_GetOperationState to C_DigestFinal", _pointer * 26),
        ("C_SignInit", ctypes.CFUNCTYPE(_ulong, _ulong, _pointer, _ulong)),
        ("C_Sign", ctypes.CFUNCTYPE(_ulong, _ulong, _pointer, _ulong, _pointer, _pointer)),
        ("C_SignUpdate", _pointer),
        ("C_SignFinal", ctypes.CFUNCTYPE(_ulong, _ulong, _pointer, _pointer)),
    )


class Module:
    """A module that is loaded and initialised when it is needed.

    Args:
        path: its full path.
        arguments: what C_Initialize gets as pReserved, for modules that want some; python-pkcs11
            can't pass them.
    """

    def __init__(self, path: str, arguments: str = "") -> None:
        self.path = path
        self._arguments = arguments.encode("utf-8")
        self._library: Any = None

    @property
    def library(self) -> Any:
        """It, as python-pkcs11 has it.

        Raises:
            PKCS11Error: it can't be loaded, or doesn't work.
            StoreAbsent: it refuses its arguments.
        """
        if not self._arguments:
            return pkcs11.lib(self.path)
        if self._library is None:
            initialize = self._initialize

            class Library(lib):
                def initialize(self) -> None:  # called when it is loaded
                    initialize()

            self._library = Library(self.path)
        return self._library

    def unload(self) -> None:
        """Finalise it: whatever it held open is closed, and `library` begins anew."""
        if not self._arguments:
            pkcs11.unload(self.path)
        elif self._library is not None:
            self._library = None
            self.functions.C_Finalize(None)

    def _initialize(self) -> None:
        arguments = _Arguments(flags=_CKF_OS_LOCKING_OK, pReserved=self._arguments)
        code = self.functions.C_Initialize(ctypes.byref(arguments))
        if code:
            raise StoreAbsent(
                f"the PKCS#11 module {self.path} doesn't work with its module_args "
                f"(C_Initialize: {code:#x})",
                hint="see what its vendor requires, and check that the files they name exist",
            )

    @cached_property
    def functions(self) -> Any:
        """Those of its functions that python-pkcs11 doesn't call as they are needed."""
        found = ctypes.POINTER(_Functions)()
        ctypes.CDLL(self.path).C_GetFunctionList(ctypes.byref(found))
        return found.contents


class KeyFunctionNotPermitted(PKCS11Error):
    """CKR_KEY_FUNCTION_NOT_PERMITTED, for which python-pkcs11 has no class."""


_NAMES = {
    "Unmapped error code 0x1b": "ActionProhibited",
    "Unmapped error code 0x68": KeyFunctionNotPermitted.__name__,
    "Unmapped error code 0x140": "CurveNotSupported",
    "User type invalid. Should never see this.": "UserTypeInvalid",
}


def error_name(error: PKCS11Error) -> str:
    """What a module's error is called, for people; python-pkcs11 has no class for every CKR_."""
    name = type(error).__name__
    return _NAMES.get(str(error), f"{name}: {error}") if name == "PKCS11Error" else name
