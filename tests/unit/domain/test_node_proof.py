"""A node proves that it holds its key, where it is, and whom it tells."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.domain.errors import InvalidInput
from shared.domain.node_proof import check_proof, make_proof
from shared.domain.signing import Signed, SigningKey
from tests.fakes.identities import COORDINATOR_URL, KEYS, N1

KEY = KEYS[N1]


def check(proof: Signed, *, key: SigningKey = KEY) -> None:
    check_proof(
        proof,
        node_id=N1,
        public_key=key.public_key,
        address="http://n1:1",
        boot_id="boot",
        coordinators=["http://other", COORDINATOR_URL],
    )


def signed(text: bytes) -> Signed:
    return Signed(text, Ed25519PrivateKey.from_private_bytes(KEY.secret).sign(text))


def test_a_proof_convinces_the_coordinator_it_names() -> None:
    check(make_proof(KEY, address="http://n1:1", boot_id="boot", coordinator=COORDINATOR_URL))
    check(make_proof(KEY, address="http://n1:1", boot_id="boot", coordinator=COORDINATOR_URL + "/"))


def test_a_proof_for_somebody_else_says_what_would_be_right() -> None:
    with pytest.raises(InvalidInput, match=r"joins http://elsewhere, and this coordinator is http://coordinator or"):
        check(make_proof(KEY, address="http://n1:1", boot_id="boot", coordinator="http://elsewhere"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace(b'"v":1', b'"v": 1'),
        lambda text: text.replace(b"butterfly/node/v1", b"butterfly/receipt/v1"),
        lambda text: text.replace(b'"v":1', b'"v":true'),
        lambda text: text + b"\n",
        lambda text: b"",
    ],
    ids=["a space", "another kind", "another type", "a line feed", "nothing"],
)
def test_a_signed_proof_in_another_form_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    whole = make_proof(KEY, address="http://n1:1", boot_id="boot", coordinator=COORDINATOR_URL)
    with pytest.raises(InvalidInput):
        check(signed(spoil(whole.text)))


def test_a_node_is_the_hash_of_its_key() -> None:
    stranger = SigningKey.generate()
    with pytest.raises(InvalidInput, match="hash of its public key"):
        check(make_proof(stranger, address="http://n1:1", boot_id="boot", coordinator=COORDINATOR_URL), key=stranger)
