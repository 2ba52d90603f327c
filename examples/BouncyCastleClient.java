// A device on Bouncy Castle (1.72): PSK-DTLS 1.2 with or without ECDHE, one CoAP
// request, its answer. Of the stacks here, only it and Erlang/OTP have 0xD003.
//
//   javac -d . -cp bctls.jar:bcprov.jar BouncyCastleClient.java
//   java -cp .:bctls.jar:bcprov.jar:bcutil.jar BouncyCastleClient 127.0.0.1 5684 plug-batch-7 \
//       706c75672d62617463682d372d6b6579 PLUG0001 TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256
//
// It prints the answer's code and payload. A last argument sets options: `noems`
// leaves extended master secret out, `mfl512` asks for small records, `p256` and
// `x25519` offer that group alone.

import java.math.BigInteger;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Hashtable;
import java.util.Vector;
import java.util.concurrent.ThreadLocalRandom;
import org.bouncycastle.tls.BasicTlsPSKIdentity;
import org.bouncycastle.tls.CipherSuite;
import org.bouncycastle.tls.DTLSClientProtocol;
import org.bouncycastle.tls.DTLSTransport;
import org.bouncycastle.tls.MaxFragmentLength;
import org.bouncycastle.tls.NamedGroup;
import org.bouncycastle.tls.PSKTlsClient;
import org.bouncycastle.tls.ProtocolVersion;
import org.bouncycastle.tls.TlsExtensionsUtils;
import org.bouncycastle.tls.UDPTransport;
import org.bouncycastle.tls.crypto.impl.bc.BcTlsCrypto;

public final class BouncyCastleClient {
    private static final int HANDSHAKE_MILLIS = 300_000;
    // RFC 7252 section 4.8. EXCHANGE_LIFETIME is the maximum wait for a separate response.
    private static final int ACK_TIMEOUT = 2_000;
    private static final int MAX_RETRANSMIT = 4;
    // Maximum number of requests, each with a new message ID, while none is acknowledged.
    private static final int ATTEMPTS = 3;
    private static final int EXCHANGE_LIFETIME = 247_000;
    // Time that the session stays open after a separate response. If our acknowledgement is
    // lost, the response is repeated within 3 s.
    private static final int LINGER = 3_000;
    // Maximum time for which the device uses one session to ask again after 4.29 or 5.03. A session
    // that is idle for 300 s ends, so a longer wait needs another handshake.
    private static final int SESSION = 240_000;
    // RFC 7252 section 5.10.5: the value of an absent Max-Age, in seconds.
    private static final long DEFAULT_MAX_AGE = 60;
    private static final int CONFIRMABLE = 0;
    private static final int ACKNOWLEDGEMENT = 2;
    private static final int RESET = 3;

    /** An answer; Max-Age is in seconds. */
    private record Answer(int code, long maxAge, byte[] payload) {
        /** Returns whether the device has to ask again after Max-Age. */
        boolean isEarly() {
            return code == 0x9d || code == 0xa3; // 4.29, 5.03
        }
    }

    private static final class Client extends PSKTlsClient {
        private final int suite;
        private final String options;

        Client(BcTlsCrypto crypto, String identity, byte[] key, int suite, String options) {
            super(crypto, new BasicTlsPSKIdentity(identity.getBytes(StandardCharsets.UTF_8), key));
            this.suite = suite;
            this.options = options;
        }

        @Override
        protected ProtocolVersion[] getSupportedVersions() {
            return ProtocolVersion.DTLSv12.only();
        }

        @Override
        protected int[] getSupportedCipherSuites() {
            return new int[] {suite};
        }

        @Override
        @SuppressWarnings({"rawtypes", "unchecked"})
        protected Vector getSupportedGroups(Vector roles) {
            Vector<Integer> groups = new Vector<>();
            if (options.contains("x25519")) groups.add(NamedGroup.x25519);
            if (options.contains("p256")) groups.add(NamedGroup.secp256r1);
            return groups.isEmpty() ? super.getSupportedGroups(roles) : groups;
        }

        @Override
        @SuppressWarnings({"rawtypes", "unchecked"})
        public Hashtable getClientExtensions() throws java.io.IOException {
            Hashtable extensions = TlsExtensionsUtils.ensureExtensionsInitialised(super.getClientExtensions());
            if (options.contains("mfl512"))
                TlsExtensionsUtils.addMaxFragmentLengthExtension(extensions, MaxFragmentLength.pow2_9);
            return extensions;
        }

        @Override
        public boolean shouldUseExtendedMasterSecret() {
            return !options.contains("noems");
        }

        @Override
        public int getHandshakeTimeoutMillis() {
            return HANDSHAKE_MILLIS;
        }
    }

    /** GET /cert with {"sn": sn} as CBOR: a confirmable message with a token of one byte. The
     * message ID and the token depend on `number`. */
    private static byte[] request(String sn, int number) {
        byte[] name = sn.getBytes(StandardCharsets.US_ASCII); // up to 23 characters
        byte[] request = ByteBuffer.allocate(18 + name.length)
                .put(HexFormat.of().parseHex("41011234c3b463657274113cffa162736e"))
                .put((byte) (0x60 | name.length))
                .put(name)
                .array();
        request[3] = request[4] = (byte) number;
        return request;
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length < 6) {
            System.err.println("usage: BouncyCastleClient HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]");
            System.exit(2);
        }
        int suite = CipherSuite.class.getField(arguments[5]).getInt(null);
        BcTlsCrypto crypto = new BcTlsCrypto(new SecureRandom());
        byte[] key = HexFormat.of().parseHex(arguments[3]);
        String options = arguments.length > 6 ? arguments[6] : "";
        DatagramSocket socket = new DatagramSocket();
        socket.connect(InetAddress.getByName(arguments[0]), Integer.parseInt(arguments[1]));
        Client client = new Client(crypto, arguments[2], key, suite, options);
        DTLSTransport dtls = new DTLSClientProtocol().connect(client, new UDPTransport(socket, 1280));

        Answer answer = ask(dtls, arguments[4]);
        dtls.close();
        if (answer == null) {
            System.err.println("no answer");
            System.exit(1);
        }
        System.out.printf("%s %d.%02d ", arguments[5], answer.code >> 5, answer.code & 31);
        System.out.write(answer.payload);
        System.out.println();
        if (answer.isEarly()) System.err.println("ask again in a new session, after " + answer.maxAge + " s");
        System.exit(answer.code >> 5 == 2 ? 0 : 1);
    }

    /** Asks again after 4.29 and 5.03, until there is another answer or the session is too old. */
    private static Answer ask(DTLSTransport dtls, String sn) throws Exception {
        long giveUp = millis() + SESSION;
        int attempts = 0;
        for (int number = 1; ; number++) {
            Answer answer = exchange(dtls, request(sn, number));
            if (answer == null) {
                if (++attempts == ATTEMPTS) return null;
                continue;
            }
            long wait = jittered(1_000 * Math.max(answer.maxAge, 1));
            if (!answer.isEarly() || millis() + wait > giveUp) return answer;
            Thread.sleep(wait);
            attempts = 0;
        }
    }

    /** Returns the answer to a request, piggybacked or separate, or null (RFC 7252). */
    private static Answer exchange(DTLSTransport dtls, byte[] request) throws java.io.IOException {
        byte[] buffer = new byte[1024];
        Answer answer = null;
        boolean acknowledged = false;
        int sent = 0;
        long wait = jittered(ACK_TIMEOUT);
        long until = millis();
        while (true) {
            if (millis() >= until) {
                // Section 4.2: the request is repeated until it is acknowledged.
                if (answer != null || acknowledged || sent > MAX_RETRANSMIT) return answer;
                dtls.send(request, 0, request.length);
                sent++;
                until = millis() + wait;
                wait *= 2;
            }
            // 0 would mean no time-out.
            int length = dtls.receive(buffer, 0, buffer.length, (int) Math.max(1, until - millis()));
            if (length < 4 || (buffer[0] & 0xc0) != 0x40) continue;
            byte[] message = Arrays.copyOf(buffer, length);
            int type = message[0] >> 4 & 3;
            int kind = message[1] >> 5 & 7;
            boolean sameId = message[2] == request[2] && message[3] == request[3];
            // An answer has the request's token. An answer in an acknowledgement also has the request's
            // message ID.
            boolean isAnswer = (kind == 2 || kind == 4 || kind == 5) && (message[0] & 15) == 1 && length > 4
                    && message[4] == request[4] && type != RESET && (type != ACKNOWLEDGEMENT || sameId);
            Answer found = isAnswer ? read(message) : null;
            if (type == CONFIRMABLE) {
                // Section 4.2: each copy of a confirmable answer is acknowledged. Any other
                // confirmable message, such as an empty one (a ping), is rejected.
                dtls.send(new byte[] {(byte) (found != null ? 0x60 : 0x70), 0, message[2], message[3]}, 0, 4);
            }
            if (message[1] == 0 && length == 4 && sameId && answer == null) {
                if (type == RESET) return null;
                if (type == ACKNOWLEDGEMENT && !acknowledged) {
                    // Section 5.2.2: the answer follows separately, and the request is not repeated.
                    acknowledged = true;
                    until = millis() + EXCHANGE_LIFETIME;
                }
            }
            if (found != null && answer == null) {
                answer = found;
                until = millis() + (type == CONFIRMABLE ? LINGER : 0);
            }
        }
    }

    /** Returns a time plus a random part of up to half of it, so that devices that failed together
     * do not retry together. */
    private static long jittered(long millis) {
        return millis + ThreadLocalRandom.current().nextLong(millis / 2 + 1);
    }

    private static long millis() {
        return System.nanoTime() / 1_000_000;
    }

    /** Returns the answer, or null for a malformed message or an unknown critical option. The
     * options are read one by one, because they may contain the payload marker 0xff (section 3.1). */
    private static Answer read(byte[] message) {
        ByteBuffer in = ByteBuffer.wrap(message, 5, message.length - 5);
        int number = 0;
        long maxAge = DEFAULT_MAX_AGE;
        byte[] payload = {};
        try {
            while (in.hasRemaining()) {
                int first = in.get() & 0xff;
                if (first == 0xff) {
                    if (!in.hasRemaining()) return null; // a marker is followed by a payload
                    payload = new byte[in.remaining()];
                    in.get(payload);
                    break;
                }
                number += extended(first >> 4, in);
                byte[] value = new byte[extended(first & 15, in)];
                in.get(value);
                if (number % 2 == 1) return null;
                if (number == 14 && value.length <= 4) maxAge = new BigInteger(1, value).longValue();
            }
        } catch (BufferUnderflowException malformed) {
            return null;
        }
        return new Answer(message[1] & 0xff, maxAge, payload);
    }

    /** Reads the extended delta or length of an option. */
    private static int extended(int nibble, ByteBuffer in) {
        if (nibble == 15) throw new BufferUnderflowException();
        if (nibble == 13) return 13 + (in.get() & 0xff);
        return nibble == 14 ? 269 + (in.getShort() & 0xffff) : nibble;
    }
}
