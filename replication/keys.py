"""Keys of a cluster: one CA, a certificate for each site and one for the operator; TLS 1.3 both ways.

A certificate names its site and its cluster as URIs in the subject alternative name: `trisite-site:NAME` and
`trisite-cluster:UUID`. Host names and addresses are not checked: a site may move, its key may not.
"""

import datetime
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["OPERATOR", "Identity", "KeysError", "load_identity", "make_keys"]

OPERATOR: Final = "operator"
"""The name in the certificate of the command line; it is no site."""
CA_FILE: Final = "ca.pem"
CA_KEY_FILE: Final = "ca.key"
SITE_PREFIX: Final = "trisite-site:"
CLUSTER_PREFIX: Final = "trisite-cluster:"
_VALID_DAYS: Final = 3650
_BACKDATED: Final = datetime.timedelta(days=1)
"""Certificates begin a day early, so that a site whose clock is behind accepts them."""


class KeysError(Exception):
    """Keys or certificates cannot be read or used; one sentence for the operator."""


@dataclass(frozen=True)
class Identity:
    """Who this side is, and the TLS contexts that prove it."""

    name: str
    """A site, or OPERATOR."""
    cluster: UUID
    client_context: ssl.SSLContext
    server_context: ssl.SSLContext

    def check_peer(self, certificate: Mapping[str, Any] | None, expect: str | None = None) -> str:
        """The name in a peer's certificate. ValueError: another cluster, or not the expected site."""
        uris = [str(value) for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]
        names = [uri.removeprefix(SITE_PREFIX) for uri in uris if uri.startswith(SITE_PREFIX)]
        clusters = [uri.removeprefix(CLUSTER_PREFIX) for uri in uris if uri.startswith(CLUSTER_PREFIX)]
        if len(names) != 1 or len(clusters) != 1:
            raise ValueError("its certificate names no trisite site; make certificates with `trisite init`")
        if clusters[0] != str(self.cluster):
            raise ValueError(f"its certificate belongs to cluster {clusters[0]}, not to {self.cluster}")
        if expect is not None and names[0] != expect:
            raise ValueError(f"its certificate is that of site {names[0]}, not of site {expect}")
        return names[0]


def make_keys(directory: Path, sites: Iterable[str], *, cluster: UUID | None = None) -> UUID:
    """Make a CA, and a key and certificate for each site and the operator; return the cluster id.

    Private keys are readable by their owner only. KeysError if there is a CA already in `directory`, or the
    files cannot be made.
    """
    cluster = cluster or uuid4()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (directory / CA_FILE).exists():
            raise KeysError(f"{directory} holds a CA already; remove it first if its keys are to be replaced")
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _ca_certificate(ca_key, cluster)
        _write_private(directory / CA_KEY_FILE, ca_key)
        for name in [*sites, OPERATOR]:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _certificate(name, cluster, key, ca, ca_key)
            _write_private(directory / f"{name}.key", key)
            _write(directory / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        # Last: whoever finds the CA finds everything.
        _write(directory / CA_FILE, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as error:
        raise KeysError(f"keys cannot be made in {directory}: {error.strerror or error}") from error
    return cluster


def load_identity(directory: Path, name: str) -> Identity:
    """The identity of a site, or of OPERATOR, from the files of make_keys. Raises KeysError."""
    certificate_file, key_file = directory / f"{name}.pem", directory / f"{name}.key"
    try:
        own = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        cluster = UUID(next(u for u in uris if u.startswith(CLUSTER_PREFIX)).removeprefix(CLUSTER_PREFIX))
        if SITE_PREFIX + name not in uris:
            raise KeysError(f"{certificate_file} is not the certificate of {name}")
        client = _context(ssl.PROTOCOL_TLS_CLIENT, directory / CA_FILE, certificate_file, key_file)
        server = _context(ssl.PROTOCOL_TLS_SERVER, directory / CA_FILE, certificate_file, key_file)
    except ssl.SSLError as error:
        raise KeysError(f"the keys of {name} in {directory} cannot be used: {error.reason}") from error
    except PermissionError as error:
        raise KeysError(
            f"the keys of {name} in {directory} may not be read by this user; "
            "run the command as the user who owns them"
        ) from error
    except OSError as error:
        raise KeysError(
            f"the keys of {name} cannot be read from {directory}: {error.strerror}; `trisite init` makes them"
        ) from error
    except (ValueError, x509.ExtensionNotFound, StopIteration) as error:
        raise KeysError(f"{certificate_file} is not a certificate made by trisite") from error
    return Identity(name, cluster, client, server)


def _context(protocol: int, ca_file: Path, certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate names a site, see Identity.check_peer
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca_file)
    context.load_cert_chain(certificate_file, key_file)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # Sessions are never resumed: a conversation lasts as long as its site.
        context.num_tickets = 0
    return context


def _ca_certificate(key: ec.EllipticCurvePrivateKey, cluster: UUID) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"trisite cluster {cluster}")])
    builder = _builder(name, name, key)
    usage = _key_usage(signs_certificates=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    name: str,
    cluster: UUID,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SITE_PREFIX + name)])
    alternatives = x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(SITE_PREFIX + name),
            x509.UniformResourceIdentifier(f"{CLUSTER_PREFIX}{cluster}"),
        ]
    )
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(subject, ca.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(both, critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, pem, 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
