"""A device on python-mbedtls (2.10): PSK-DTLS 1.2, one CoAP request, its answer.

    python3 python_mbedtls_client.py 127.0.0.1 5684 plug-batch-7 \
        706c75672d62617463682d372d6b6579 PLUG0001 TLS-PSK-WITH-AES-128-CCM-8

It prints the answer's code and payload. A last argument sets options: `mfl512` asks for
small records, `rfc7925` starts with the 9 s of RFC 7925 section 11 for the handshake's
timer. The library's own socket waits for the server without looking at that timer, so
that a lost flight is never repeated; its buffers, used here, leave the waiting to us.
"""

import random
import socket
import sys
import time
from contextlib import suppress

from mbedtls import tls
from mbedtls.exceptions import TLSError

# RFC 7252 section 4.8, in seconds. EXCHANGE_LIFETIME is the maximum wait for a separate
# response.
ACK_TIMEOUT = 2
MAX_RETRANSMIT = 4
# Maximum number of requests, each with a new message ID, while none is acknowledged.
ATTEMPTS = 3
EXCHANGE_LIFETIME = 247
# Time that the session stays open after a separate response. If our acknowledgement is
# lost, the response is repeated within 3 s.
LINGER = 3
PATIENCE = 300
# Maximum time for which the device uses one session to ask again after 4.29 or 5.03. A session that is
# idle for 300 s ends, so a longer wait needs another handshake.
SESSION = 240
# RFC 7252 section 5.10.5: the value of an absent Max-Age, in seconds.
DEFAULT_MAX_AGE = 60
TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE = 0x9D, 0xA3
# Interval at which the handshake's timer is checked, in seconds.
TICK = 0.1
CONFIRMABLE, ACKNOWLEDGEMENT, RESET = 0, 2, 3


class Session:
    """A DTLS session over a connected UDP socket."""

    def __init__(self, address, configuration):
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.connect(address)
        self.dtls = tls.ClientContext(configuration).wrap_buffers(None)

    def transmit(self):
        """Sends the library's output, one datagram per record."""
        while waiting := self.dtls.peek_outgoing(4096):
            length = 13 + int.from_bytes(waiting[11:13], "big")
            self.udp.send(waiting[:length])
            self.dtls.consume_outgoing(length)

    def handshake(self):
        deadline = time.monotonic() + PATIENCE
        while self.dtls._handshake_state is not tls.HandshakeStep.HANDSHAKE_OVER:
            if time.monotonic() > deadline:
                raise TimeoutError("no handshake")
            try:
                self.dtls.do_handshake()
            except tls.WantWriteError:
                self.transmit()
            except tls.WantReadError:
                self.transmit()
                self.take(TICK)
        self.transmit()

    def take(self, seconds):
        """Passes one datagram to the library, if one arrives in time."""
        self.udp.settimeout(max(seconds, 0.001))
        with suppress(TimeoutError):
            self.dtls.receive_from_network(self.udp.recv(4096))

    def send(self, message):
        self.dtls.write(message)
        self.transmit()

    def receive(self, seconds):
        """Returns a message, or None."""
        self.take(seconds)
        with suppress(tls.WantReadError):
            return self.dtls.read(2048)
        return None

    def close(self):
        with suppress(TLSError, tls.WantWriteError):
            self.dtls.shutdown()
        with suppress(OSError):
            self.transmit()


def connect(address, configuration):
    """Returns a session. Restarts the handshake if the library gives up."""
    deadline = time.monotonic() + PATIENCE
    while True:
        session = Session(address, configuration)
        try:
            session.handshake()
            return session
        except TLSError:
            if time.monotonic() > deadline:
                raise


def request(sn, number):
    """GET /cert with {"sn": sn} as CBOR: a confirmable message with a token of one byte. The
    serial number has up to 23 characters. Each number gives another message ID and token."""
    name = sn.encode()
    head = b"\x41\x01\x12" + bytes([number % 256, number % 256]) + b"\xb4cert\x11\x3c\xff\xa1\x62sn"
    return head + bytes([0x60 | len(name)]) + name


def options(message):
    """Returns the offset of the payload and Max-Age, or None for a malformed message or an unknown
    critical option. The options are read one by one, because they may contain the payload marker
    0xff (RFC 7252 section 3.1)."""
    at, number, max_age = 4 + (message[0] & 15), 0, DEFAULT_MAX_AGE

    def extended(nibble):
        nonlocal at
        size = {13: 1, 14: 2}.get(nibble, 0)
        if nibble == 15 or at + size > len(message):
            raise ValueError
        at += size
        return nibble if size == 0 else (13, 269)[size - 1] + int.from_bytes(message[at - size : at], "big")

    try:
        while at < len(message) and message[at] != 0xFF:
            first = message[at]
            at += 1
            number += extended(first >> 4)
            size = extended(first & 15)
            if at + size > len(message) or number % 2 == 1:
                return None
            if number == 14:
                max_age = int.from_bytes(message[at : at + size], "big")
            at += size
    except ValueError:
        return None
    # A marker is followed by a payload.
    return None if at + 1 == len(message) else (at + 1, max_age)


def exchange(session, message):
    """Returns the answer to a request, piggybacked or separate, with the offset of its payload and
    its Max-Age, or None."""
    answer, acknowledged, sent = None, False, 0
    wait = ACK_TIMEOUT * random.uniform(1, 1.5)
    until = time.monotonic()
    while True:
        if time.monotonic() >= until:
            # RFC 7252 section 4.2: the request is repeated until it is acknowledged.
            if answer or acknowledged or sent > MAX_RETRANSMIT:
                return answer
            session.send(message)
            sent += 1
            until = time.monotonic() + wait
            wait *= 2
        got = session.receive(until - time.monotonic())
        if not got or len(got) < 4 or got[0] >> 6 != 1:
            continue
        kind, same_id = got[0] >> 4 & 3, got[2:4] == message[2:4]
        # An answer has the request's token. An answer in an acknowledgement also has the request's
        # message ID.
        is_answer = got[1] >> 5 in (2, 4, 5) and got[0] & 15 == 1 and got[4:5] == message[4:5]
        is_answer = is_answer and kind != RESET and (kind != ACKNOWLEDGEMENT or same_id)
        found = options(got) if is_answer else None
        if kind == CONFIRMABLE:
            # Section 4.2: each copy of a confirmable answer is acknowledged. Any other confirmable
            # message, such as an empty one (a ping), is rejected.
            session.send(bytes([0x60 if found else 0x70, 0]) + got[2:4])
        if got[1] == 0 and len(got) == 4 and same_id and not answer:
            if kind == RESET:
                return None
            if kind == ACKNOWLEDGEMENT and not acknowledged:
                # Section 5.2.2: the answer follows separately, and the request is not repeated.
                acknowledged, until = True, time.monotonic() + EXCHANGE_LIFETIME
        if found and not answer:
            answer = (got, *found)
            until = time.monotonic() + (LINGER if kind == CONFIRMABLE else 0)


def ask(session, sn):
    """Asks until there is an answer other than 4.29 and 5.03, as long as the session lasts."""
    number, attempts, give_up = 0, 0, time.monotonic() + SESSION
    while True:
        number += 1
        attempts += 1
        answer = exchange(session, request(sn, number))
        if answer is None:
            if attempts == ATTEMPTS:
                return None
            continue
        message, _, max_age = answer
        wait = max(max_age, 1) * random.uniform(1, 1.5)
        is_early = message[1] in (TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE)
        if not is_early or time.monotonic() + wait > give_up:
            return answer
        time.sleep(wait)
        attempts = 0


def main(arguments):
    if len(arguments) < 6 or len(arguments[4]) > 23:
        print("usage: python_mbedtls_client.py HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]", file=sys.stderr)
        return 2
    host, port, identity, key, sn, suite = arguments[:6]
    settings = "".join(arguments[6:])
    configuration = tls.DTLSConfiguration(
        ciphers=[suite],
        pre_shared_key=(identity, bytes.fromhex(key)),
        validate_certificates=False,
        lowest_supported_version=tls.DTLSVersion.DTLSv1_2,
        max_fragmentation_length=tls.MaxFragmentLength.MFL_512K if "mfl512" in settings else None,
        handshake_timeout_min=9.0 if "rfc7925" in settings else 1.0,
        handshake_timeout_max=60.0 if "rfc7925" in settings else 8.0,
    )
    session = connect((host, int(port)), configuration)
    answer = ask(session, sn)
    session.close()
    if not answer:
        print("no answer", file=sys.stderr)
        return 1
    message, payload, max_age = answer
    print(suite, f"{message[1] >> 5}.{message[1] & 31:02}", flush=True)
    sys.stdout.buffer.write(message[payload:] + b"\n")
    if message[1] in (TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE):
        print(f"ask again in a new session, after {max_age} s", file=sys.stderr)
    return 0 if message[1] >> 5 == 2 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
