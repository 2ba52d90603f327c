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

import java.net.DatagramSocket;
import java.net.InetAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Hashtable;
import java.util.Vector;
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

    /** GET /cert with {"sn": sn} as CBOR: a confirmable message of token 0xc3. */
    private static byte[] request(String sn) {
        byte[] name = sn.getBytes(StandardCharsets.US_ASCII); // up to 23 characters
        return ByteBuffer.allocate(18 + name.length)
                .put(HexFormat.of().parseHex("41011234c3b463657274113cffa162736e"))
                .put((byte) (0x60 | name.length))
                .put(name)
                .array();
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

        byte[] request = request(arguments[4]);
        byte[] response = null;
        for (int attempt = 0; attempt < ATTEMPTS && response == null; attempt++) {
            response = exchange(dtls, request);
            request[3]++;
        }
        dtls.close();
        if (response == null) {
            System.err.println("no answer");
            System.exit(1);
        }
        int code = response[1] & 0xff;
        System.out.printf("%s %d.%02d ", arguments[5], code >> 5, code & 31);
        System.out.write(Arrays.copyOfRange(response, payload(response), response.length));
        System.out.println();
        System.exit(code >> 5 == 2 ? 0 : 1);
    }

    /** Returns the response to a request, piggybacked or separate, or null (RFC 7252). */
    private static byte[] exchange(DTLSTransport dtls, byte[] request) throws java.io.IOException {
        byte[] message = new byte[1024];
        byte[] response = null;
        boolean acknowledged = false;
        int sent = 0;
        long wait = ACK_TIMEOUT + new SecureRandom().nextInt(ACK_TIMEOUT / 2);
        long until = millis();
        while (true) {
            if (millis() >= until) {
                // Section 4.2: the request is repeated until it is acknowledged.
                if (response != null || acknowledged || sent > MAX_RETRANSMIT) return response;
                dtls.send(request, 0, request.length);
                sent++;
                until = millis() + wait;
                wait *= 2;
            }
            // 0 would mean no time-out.
            int length = dtls.receive(message, 0, message.length, (int) Math.max(1, until - millis()));
            if (length < 4 || (message[0] & 0xc0) != 0x40) continue;
            int type = message[0] >> 4 & 3;
            boolean confirmable = type == 0;
            boolean ours = message[2] == request[2] && message[3] == request[3];
            if (type == 3) {
                if (ours) return response;
                continue;
            }
            if (type == 2 && message[1] == 0) {
                // Section 5.2.2: the response follows separately.
                if (ours && !acknowledged && response == null) {
                    acknowledged = true;
                    until = millis() + EXCHANGE_LIFETIME;
                }
                continue;
            }
            boolean matches =
                    (message[1] & 0xff) >= 0x40 && (message[0] & 15) == 1 && length > 4 && message[4] == request[4];
            if (confirmable) {
                // Section 4.2: each copy of the response is acknowledged. Any other
                // confirmable message, such as an empty one (a ping), is rejected.
                dtls.send(new byte[] {(byte) (matches ? 0x60 : 0x70), 0, message[2], message[3]}, 0, 4);
            }
            if (matches && response == null) {
                response = Arrays.copyOf(message, length);
                until = millis() + (confirmable ? LINGER : 0);
            }
        }
    }

    private static long millis() {
        return System.nanoTime() / 1_000_000;
    }

    /** Returns the offset of the payload. The options are skipped one by one, because they
     * may contain the payload marker 0xff. */
    private static int payload(byte[] message) {
        int at = 4 + (message[0] & 15);
        while (at < message.length && message[at] != (byte) 0xff) {
            int delta = message[at] >> 4 & 15;
            int size = message[at] & 15;
            at += 1 + (delta == 13 ? 1 : delta == 14 ? 2 : 0);
            if (size == 13 && at < message.length) size = 13 + (message[at++] & 0xff);
            at += size;
        }
        return Math.min(at + 1, message.length);
    }
}
