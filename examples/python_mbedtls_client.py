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


def request(sn):
    """GET /cert with {"sn": sn} as CBOR: a confirmable message of token 0xc3. The serial
    number has up to 23 characters."""
    name = sn.encode()
    return b"\x41\x01\x12\x34\xc3\xb4cert\x11\x3c\xff\xa1\x62sn" + bytes([0x60 | len(name)]) + name


def exchange(session, message):
    """Returns the response to a request, piggybacked or separate, or None."""
    response, acknowledged, sent = None, False, 0
    wait = ACK_TIMEOUT * random.uniform(1, 1.5)
    until = time.monotonic()
    while True:
        if time.monotonic() >= until:
            # RFC 7252 section 4.2: the request is repeated until it is acknowledged.
            if response or acknowledged or sent > MAX_RETRANSMIT:
                return response
            session.send(message)
            sent += 1
            until = time.monotonic() + wait
            wait *= 2
        got = session.receive(until - time.monotonic())
        if not got or len(got) < 4 or got[0] >> 6 != 1:
            continue
        kind, ours = got[0] >> 4 & 3, got[2:4] == message[2:4]
        if kind == RESET:
            if ours:
                return response
            continue
        if kind == ACKNOWLEDGEMENT and got[1] == 0:
            # Section 5.2.2: the response follows separately.
            if ours and not acknowledged and not response:
                acknowledged, until = True, time.monotonic() + EXCHANGE_LIFETIME
            continue
        matches = got[1] >= 0x40 and got[0] & 15 == 1 and got[4:5] == message[4:5]
        if kind == CONFIRMABLE:
            # Section 4.2: each copy of the response is acknowledged. Any other confirmable
            # message, such as an empty one (a ping), is rejected.
            session.send(bytes([0x60 if matches else 0x70, 0]) + got[2:4])
        if matches and not response:
            response = got
            until = time.monotonic() + (LINGER if kind == CONFIRMABLE else 0)


def payload(message):
    """Returns the payload. The options are skipped one by one, because they may contain the
    payload marker 0xff."""
    at = 4 + (message[0] & 15)
    while at < len(message) and message[at] != 0xFF:
        delta, size = message[at] >> 4, message[at] & 15
        at += 1 + {13: 1, 14: 2}.get(delta, 0)
        if size == 13:
            size = 13 + message[at]
            at += 1
        at += size
    return message[at + 1 :]


def main(arguments):
    if len(arguments) < 6 or len(arguments[4]) > 23:
        print("usage: python_mbedtls_client.py HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]", file=sys.stderr)
        return 2
    host, port, identity, key, sn, suite = arguments[:6]
    options = "".join(arguments[6:])
    configuration = tls.DTLSConfiguration(
        ciphers=[suite],
        pre_shared_key=(identity, bytes.fromhex(key)),
        validate_certificates=False,
        lowest_supported_version=tls.DTLSVersion.DTLSv1_2,
        max_fragmentation_length=tls.MaxFragmentLength.MFL_512K if "mfl512" in options else None,
        handshake_timeout_min=9.0 if "rfc7925" in options else 1.0,
        handshake_timeout_max=60.0 if "rfc7925" in options else 8.0,
    )
    session = connect((host, int(port)), configuration)
    message, response = request(sn), None
    for attempt in range(ATTEMPTS):
        message = message[:3] + bytes([message[3] + attempt]) + message[4:]
        if response := exchange(session, message):
            break
    session.close()
    if not response:
        print("no answer", file=sys.stderr)
        return 1
    print(suite, f"{response[1] >> 5}.{response[1] & 31:02}", flush=True)
    sys.stdout.buffer.write(payload(response) + b"\n")
    return 0 if response[1] >> 5 == 2 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
