"""A key's signatures by C_SignInit and C_Sign, and by python-pkcs11, as a program of its own.

    python -m tests.stores.sign_both_ways MODULE LABEL < PIN

It makes a key, says `ready`, and signs once each way for each line that comes: on a line each, what
the signatures were worth, or the errors' names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.exceptions import PKCS11Error

from dpop_agent.signer.pkcs11 import attributes
from dpop_agent.signer.pkcs11.module import Module, error_name
from dpop_agent.signer.pkcs11.signing import Signing

DATA = b"d" * 51
WAYS: dict[str, dict[str, Any]] = {
    "ecdsa": {"mechanism": Mechanism.ECDSA},
    "pkcs": {"mechanism": Mechanism.RSA_PKCS},
    "sha256 pkcs": {"mechanism": Mechanism.SHA256_RSA_PKCS},
    "pss": {
        "mechanism": Mechanism.RSA_PKCS_PSS,
        "mechanism_param": attributes.PSS_PARAMETERS,
    },
}


def main(path: str, label: str) -> None:
    module = Module(path)
    token = module.library.get_token(token_label=label)
    session = token.open(rw=True, user_pin=sys.stdin.readline().strip())
    rsa = session.generate_keypair(KeyType.RSA, 2048)
    parameters = {Attribute.EC_PARAMS: attributes.EC_PARAMS["P-256"][0]}
    ec = session.create_domain_parameters(KeyType.EC, parameters, local=True).generate_keypair()
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        how = WAYS[name]
        public, private = ec if name == "ecdsa" else rsa
        signing = Signing.by(module, private)
        assert signing is not None
        prepared = signing.prepared(**how)
        data = DATA[:32] if name in ("ecdsa", "pss") else DATA

        def worth(sign: Callable[[], bytes], public=public, data=data, how=how) -> str:  # type: ignore[no-untyped-def]
            try:
                return str(public.verify(data, sign(), **how))
            except PKCS11Error as e:
                return error_name(e)

        print(worth(lambda: prepared(data)), flush=True)  # noqa: B023
        print(worth(lambda: private.sign(data, **how)), flush=True)  # noqa: B023


if __name__ == "__main__":
    main(*sys.argv[1:])
